//! Attaches the programs by links, pins the links, adopts what an earlier agent left, and takes all of it away.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, Xdp, XdpMode, loaded_programs};
use aya::sys::SyscallError;

use super::{Dataplane, DataplaneError, EGRESS_PROGRAM, INGRESS_PROGRAM, XDP_PROGRAM, map_directory};

/// The directory of the map of continuations, whose pin is called by the id of the XDP program.
pub(super) const CONTINUATIONS: &str = "continuations";

/// How to see what comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// XDP in the driver, or where the driver has none, TC (the decapsulator: the generic hook).
    Auto,
    /// XDP in the driver or nothing.
    Native,
    /// XDP after the socket buffer is built: slow, and lost on what the host has put together by then.
    Generic,
    /// TC, beside whatever runs XDP there.
    Tc,
}

/// How what comes in by an interface is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By XDP in the driver.
    Native,
    /// By XDP in the stack, and why not in the driver.
    Generic {
        /// Why.
        why: String,
    },
    /// By TC, and why not by XDP.
    Tc {
        /// Why.
        why: String,
    },
    /// By XDP, as an earlier agent attached it.
    Adopted,
}

/// One interface with both programs attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// How what comes in is seen.
    pub mode: Mode,
}

impl Dataplane {
    /// Attaches both programs to an interface. A link that an earlier agent pinned is updated in place, so that there is
    /// no moment without a program.
    ///
    /// # Errors
    /// [`DataplaneError`]; what was attached before stays.
    pub fn attach(&mut self, interface: &str, mode: AttachMode) -> Result<Attachment, DataplaneError> {
        let ifindex = index_of(interface)?;
        let links = self.pin_directory.join("links");
        create(&links)?;
        let mode = self.attach_ingress(interface, ifindex, mode, &links)?;
        let egress = (EGRESS_PROGRAM, TcAttachType::Egress);
        let pin = links.join(format!("tcx-{interface}"));
        attach_tc(egress, self.egress()?, interface, &pin)?;
        Ok(Attachment {
            interface: interface.to_owned(),
            ifindex,
            mode,
        })
    }

    /// By XDP or by TC. A link that an earlier agent pinned decides, so that no packet is seen by both or by neither.
    fn attach_ingress(
        &mut self,
        interface: &str,
        ifindex: u32,
        mode: AttachMode,
        links: &Path,
    ) -> Result<Mode, DataplaneError> {
        let (xdp, tc) = (
            links.join(format!("xdp-{interface}")),
            links.join(format!("ingress-{interface}")),
        );
        let is_tc = tc.exists() || mode == AttachMode::Tc && !xdp.exists();
        let why = if is_tc {
            "the configuration asks for it".to_owned()
        } else {
            let driver_or_generic = match mode {
                AttachMode::Auto => AttachMode::Native,
                asked_for => asked_for,
            };
            let program = self.xdp()?;
            match attach_xdp(XDP_PROGRAM, program, interface, ifindex, driver_or_generic, &xdp) {
                Err(DataplaneError::Attach { source, .. }) if mode == AttachMode::Auto => cause(&source),
                attached => return attached,
            }
        };
        let ingress = (INGRESS_PROGRAM, TcAttachType::Ingress);
        let is_adopted = attach_tc(ingress, self.ingress()?, interface, &tc)?;
        let why = if is_adopted {
            "an earlier agent attached it so".to_owned()
        } else {
            why
        };
        Ok(Mode::Tc { why })
    }

    /// Pins the programs in place of those of an earlier agent, and drops maps of other schemas, which no attached
    /// program uses any more.
    ///
    /// # Errors
    /// [`DataplaneError::Pin`] or [`DataplaneError::PinDirectory`].
    pub fn settle(&mut self) -> Result<(), DataplaneError> {
        let programs = self.pin_directory.join("programs");
        create(&programs)?;
        for name in [XDP_PROGRAM, INGRESS_PROGRAM, EGRESS_PROGRAM] {
            let path = programs.join(name);
            remove_file(&path)?;
            let pinned = match name {
                XDP_PROGRAM => self.xdp()?.pin(&path),
                INGRESS_PROGRAM if self.tc_continuations.is_none() => continue,
                INGRESS_PROGRAM => self.ingress()?.pin(&path),
                _ => self.egress()?.pin(&path),
            };
            pinned.map_err(|source| DataplaneError::Pin { path, source })?;
        }
        let own: Vec<PathBuf> = std::iter::once(self.continuations)
            .chain(self.tc_continuations)
            .map(|id| continuations_pin(&self.pin_directory, id))
            .collect();
        for pin in list(&self.pin_directory.join(CONTINUATIONS))? {
            if !own.contains(&pin) {
                remove_file(&pin)?;
            }
        }
        let own = map_directory(&self.pin_directory);
        for entry in list(&self.pin_directory)? {
            let is_maps = entry
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("maps-"));
            if is_maps && entry != own {
                remove_directory(&entry)?;
            }
        }
        Ok(())
    }

    /// Detaches an interface that is no longer configured.
    ///
    /// # Errors
    /// [`DataplaneError::PinDirectory`].
    pub fn keep_only(&mut self, interfaces: &[String]) -> Result<Vec<String>, DataplaneError> {
        let mut dropped = Vec::new();
        for pin in list(&self.pin_directory.join("links"))? {
            let name = pin
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let interface = name
                .split_once('-')
                .map(|(_, interface)| interface.to_owned())
                .unwrap_or_default();
            if !interfaces.contains(&interface) {
                remove_file(&pin)?;
                dropped.push(name);
            }
        }
        Ok(dropped)
    }
}

/// Takes an instance away whole: links first, so that no program runs on maps that are gone.
///
/// # Errors
/// [`DataplaneError::PinDirectory`] if a pin cannot be removed.
pub fn detach(pin_directory: &Path) -> Result<(), DataplaneError> {
    for name in ["links", "programs"] {
        remove_directory(&pin_directory.join(name))?;
    }
    for entry in list(pin_directory)? {
        remove_directory(&entry)?;
    }
    match std::fs::remove_dir(pin_directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DataplaneError::PinDirectory {
            path: pin_directory.to_owned(),
            source,
        }),
    }
}

/// The index of an interface.
pub(super) fn index_of(interface: &str) -> Result<u32, DataplaneError> {
    let missing = |_| DataplaneError::NoInterface {
        interface: interface.to_owned(),
    };
    let (family, kind) = (rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM);
    let socket = rustix::net::socket(family, kind, None).map_err(missing)?;
    rustix::net::netdevice::name_to_index(socket, interface).map_err(missing)
}

/// Attaches an XDP program and pins its link.
pub(super) fn attach_xdp(
    name: &'static str,
    program: &mut Xdp,
    interface: &str,
    ifindex: u32,
    mode: AttachMode,
    pin: &Path,
) -> Result<Mode, DataplaneError> {
    if let Some(link) = adopt(pin)? {
        let updated = program.attach_to_link(link.try_into().map_err(|source| DataplaneError::Link {
            path: pin.to_owned(),
            source,
        })?);
        match updated {
            // The pin keeps the link; the handle is given up with it.
            Ok(id) => {
                let link = program
                    .take_link(id)
                    .map_err(|source| failed(name, interface, source))?;
                drop(link);
                return Ok(Mode::Adopted);
            }
            // The interface that the link belonged to is gone; this one only has its name.
            Err(error) if has_no_target(&error) => remove_file(pin)?,
            Err(source) => return Err(failed(name, interface, source)),
        }
    }
    let (id, mode) = match mode {
        AttachMode::Native | AttachMode::Tc => {
            (program.attach_to_if_index(ifindex, XdpMode::Driver), Mode::Native)
        }
        AttachMode::Generic => {
            let why = "the configuration asks for it".to_owned();
            (
                program.attach_to_if_index(ifindex, XdpMode::Skb),
                Mode::Generic { why },
            )
        }
        AttachMode::Auto => match program.attach_to_if_index(ifindex, XdpMode::Driver) {
            Err(error) if !is_occupied(&error) => {
                let why = cause(&error);
                (
                    program.attach_to_if_index(ifindex, XdpMode::Skb),
                    Mode::Generic { why },
                )
            }
            attached => (attached, Mode::Native),
        },
    };
    let id = id.map_err(|source| {
        if is_occupied(&source) {
            DataplaneError::Occupied {
                interface: interface.to_owned(),
                other: other_xdp(),
            }
        } else {
            failed(name, interface, source)
        }
    })?;
    let link = program
        .take_link(id)
        .map_err(|source| failed(name, interface, source))?;
    pin_link(link, pin)?;
    Ok(mode)
}

/// Attaches a program to a side of an interface and pins its link; says whether there was one that an earlier agent left.
///
/// What comes in is judged before any other program of that side sees it.
fn attach_tc(
    (name, side): (&'static str, TcAttachType),
    program: &mut SchedClassifier,
    interface: &str,
    pin: &Path,
) -> Result<bool, DataplaneError> {
    if let Some(link) = adopt(pin)? {
        let updated = program.attach_to_link(link.try_into().map_err(|source| DataplaneError::Link {
            path: pin.to_owned(),
            source,
        })?);
        match updated {
            Ok(id) => {
                let link = program
                    .take_link(id)
                    .map_err(|source| failed(name, interface, source))?;
                drop(link);
                return Ok(true);
            }
            Err(error) if has_no_target(&error) => remove_file(pin)?,
            Err(source) => return Err(failed(name, interface, source)),
        }
    }
    let order = match side {
        TcAttachType::Ingress => LinkOrder::first(),
        _ => LinkOrder::default(),
    };
    let id = program
        .attach_with_options(interface, side, TcAttachOptions::TcxOrder(order))
        .map_err(|source| failed(name, interface, source))?;
    let link = program
        .take_link(id)
        .map_err(|source| failed(name, interface, source))?;
    pin_link(link, pin)?;
    Ok(false)
}

/// Pins a new link, which keeps its program attached when the agent is gone.
fn pin_link<L>(link: L, pin: &Path) -> Result<(), DataplaneError>
where
    FdLink: TryFrom<L, Error = LinkError>,
{
    let link = FdLink::try_from(link).map_err(|source| DataplaneError::Link {
        path: pin.to_owned(),
        source,
    })?;
    link.pin(pin).map(drop).map_err(|source| DataplaneError::Pin {
        path: pin.to_owned(),
        source,
    })
}

fn failed(program: &'static str, interface: &str, source: ProgramError) -> DataplaneError {
    if errno(&source) == Some(rustix::io::Errno::PERM.raw_os_error()) {
        return DataplaneError::Privileges;
    }
    DataplaneError::Attach {
        program,
        interface: interface.to_owned(),
        source,
    }
}

fn adopt(pin: &Path) -> Result<Option<FdLink>, DataplaneError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataplaneError::Link {
            path: pin.to_owned(),
            source,
        }),
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        _ => None,
    }
}

fn is_occupied(error: &ProgramError) -> bool {
    let code = errno(error);
    code == Some(rustix::io::Errno::BUSY.raw_os_error())
        || code == Some(rustix::io::Errno::EXIST.raw_os_error())
}

fn has_no_target(error: &ProgramError) -> bool {
    errno(error) == Some(rustix::io::Errno::NOLINK.raw_os_error())
}

fn cause(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        other => other.to_string(),
    }
}

/// Names the XDP programs that are loaded besides ours, since the kernel does not say which one is in the way.
fn other_xdp() -> String {
    let others: Vec<String> = loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| program.program_type() == Xdp::PROGRAM_TYPE.into())
        .filter_map(|program| {
            let name = program.name_as_str().unwrap_or("unnamed").to_owned();
            (!XDP_PROGRAM.starts_with(&name)).then(|| format!("`{name}` (id {})", program.id()))
        })
        .collect();
    if others.is_empty() {
        String::new()
    } else {
        format!(", one of {}", others.join(", "))
    }
}

/// Where the map of continuations of the XDP program with this id is pinned.
pub(super) fn continuations_pin(pin_directory: &Path, id: u32) -> PathBuf {
    pin_directory.join(CONTINUATIONS).join(id.to_string())
}

pub(super) fn create(path: &Path) -> Result<(), DataplaneError> {
    std::fs::create_dir_all(path).map_err(|source| DataplaneError::PinDirectory {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DataplaneError::PinDirectory {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let wrap = |source| DataplaneError::PinDirectory {
        path: directory.to_owned(),
        source,
    };
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(wrap),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(wrap(source)),
    }
}

/// Removes a directory of pins: bpffs holds no deeper ones of ours.
fn remove_directory(directory: &Path) -> Result<(), DataplaneError> {
    if directory.is_dir() {
        for pin in list(directory)? {
            remove_file(&pin)?;
        }
        return std::fs::remove_dir(directory).map_err(|source| DataplaneError::PinDirectory {
            path: directory.to_owned(),
            source,
        });
    }
    remove_file(directory)
}
