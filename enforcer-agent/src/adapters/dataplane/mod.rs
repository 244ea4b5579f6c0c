//! The kernel side: loads or adopts programs and maps, attaches them, and gives typed access to the maps.
//!
//! Everything is pinned below one directory of bpffs, so that enforcement goes on without the agent:
//!
//! - `maps-<schema hash>/NAME`: the maps; another schema gets another directory.
//! - `links/xdp-<interface>`, or `links/ingress-<interface>` where XDP cannot be attached, and `links/tcx-<interface>`:
//!   what keeps the programs attached.
//! - `programs/NAME`: the programs, for inspection.

mod attach;
mod cache;
mod decapsulator;
mod events;
#[cfg(feature = "kernel-log")]
mod kernel_log;
mod maps;
mod port;
mod sweep;

use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError, MapInfo, ProgramArray};
use aya::pin::PinError;
use aya::programs::links::LinkError;
use aya::programs::{ProgramError, ProgramFd, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use enforcer_common::continuation::Continuation;
use enforcer_common::schema::{MAPS, SCHEMA_HASH};

use crate::adapters::{clock, memory};
use crate::pure::capacity::Capacity;
use crate::pure::doctor::{OLDEST_KERNEL, is_too_old};

pub use attach::{AttachMode, Attachment, Mode, detach};
pub use decapsulator::{decapsulate, stop_decapsulating};
pub use events::EventsReady;
pub use maps::{Captures, Maps, Tally};
pub use sweep::{ClosedFlow, FlowSweeper, Swept, Timeouts};

/// The kernel object, built for the BPF target by the build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer"));

/// Name of the XDP program.
pub const XDP_PROGRAM: &str = "enforcer_xdp";
/// Name of the TC ingress program, which does the same where XDP cannot be attached.
pub const INGRESS_PROGRAM: &str = "enforcer_ingress";
/// Name of the TC egress program.
pub const EGRESS_PROGRAM: &str = "enforcer_egress";

/// How to load.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where everything is pinned: a directory on bpffs that belongs to this instance alone.
    pub pin_directory: PathBuf,
    /// How much is to fit, if the maps are not there yet.
    pub capacity: Capacity,
    /// Have the programs take the time from `HOST` instead of the kernel: for tests.
    pub test_clock: bool,
}

/// Another one after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What goes wrong with the kernel side.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel does not say which boot this is.
    #[error("{BOOT_ID} cannot be read: {source}; mount /proc")]
    BootId {
        /// Why.
        source: io::Error,
    },
    /// The pin directory cannot be used.
    #[error("{path} cannot be used for pins: {source}; mount bpffs with `mount -t bpf bpf /sys/fs/bpf`")]
    PinDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel lacks what is needed.
    #[error(
        "kernel {release} is too old: run {}.{} or later, which has TCX links; nothing was changed",
        OLDEST_KERNEL.0,
        OLDEST_KERNEL.1
    )]
    KernelTooOld {
        /// Its release.
        release: String,
    },
    /// The process may not use BPF.
    #[error(
        "this process may not load and attach BPF programs: run it as root, or with CAP_BPF, CAP_NET_ADMIN and \
         CAP_PERFMON"
    )]
    Privileges,
    /// A pinned map is not what this build expects.
    #[error(
        "the pinned map {name} has {found}, this build expects {expected}; stop every agent of this instance and run \
         `enforcer-agent detach`"
    )]
    Schema {
        /// The map.
        name: &'static str,
        /// What it has.
        found: String,
        /// What is expected.
        expected: String,
    },
    /// The object could not be loaded.
    #[error("the kernel object cannot be loaded: {0}")]
    Object(#[from] EbpfError),
    /// The verifier or the kernel refused a program.
    #[error("the kernel refused the program {name}: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// Why.
        source: ProgramError,
    },
    /// A map operation failed.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// The kernel does not say how many CPUs there can be.
    #[error("the number of CPUs cannot be read: {source}; mount /sys")]
    Cpus {
        /// Why.
        source: io::Error,
    },
    /// A pin could not be made or removed.
    #[error("pin {path}: {source}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: PinError,
    },
    /// A pinned link could not be opened or used.
    #[error("link {path}: {source}")]
    Link {
        /// The pin.
        path: PathBuf,
        /// Why.
        source: LinkError,
    },
    /// There is no such interface.
    #[error("interface {interface} does not exist in this network namespace; see `ip link`")]
    NoInterface {
        /// Its name.
        interface: String,
    },
    /// Another XDP program is attached.
    #[error(
        "interface {interface} already runs another XDP program{other}; it was left in place: detach it, or take this \
         interface out of the agent's configuration, or set `attachMode: Tc` to judge what that program lets through"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// Name and number of the other program, where known, with a leading space.
        other: String,
    },
    /// Attaching failed.
    #[error("{program} cannot be attached to {interface}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// Why.
        source: ProgramError,
    },
}

/// Names of the maps of programs that go on with a packet, after XDP and after TC.
const CONTINUATIONS_MAP: &str = "CONTINUATIONS";
const TC_CONTINUATIONS_MAP: &str = "TC_CONTINUATIONS";

/// Programs and maps of one instance.
pub struct Dataplane {
    ebpf: Ebpf,
    pin_directory: PathBuf,
    /// Which pins are those of the maps of programs that go on with a packet: the id of the program that they go on from.
    /// The TC programs are loaded only where somebody asks for them.
    continuations: u32,
    tc_continuations: Option<u32>,
    /// Typed handles.
    pub maps: Maps,
    /// Whether the maps were there before: their content is that of an earlier agent.
    pub adopted: bool,
    /// How much fits: adopted maps keep the capacity that they were made with.
    pub capacity: Capacity,
}

/// Where the maps of this build's schema are pinned.
#[must_use]
pub fn map_directory(pin_directory: &Path) -> PathBuf {
    pin_directory.join(format!("maps-{SCHEMA_HASH:016x}"))
}

/// Opens a pinned map.
fn open_map<T>(directory: &Path, name: &'static str, wrap: fn(MapData) -> Map) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let data =
        MapData::from_pin(directory.join(name)).map_err(|source| DataplaneError::Map { name, source })?;
    T::try_from(wrap(data)).map_err(|source| DataplaneError::Map { name, source })
}

/// What the kernel says of a pinned map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedMap {
    /// The kernel's id.
    pub id: u32,
    /// Entries that fit; bytes for a ring buffer.
    pub capacity: u32,
}

/// Looks at a pinned map.
///
/// # Errors
/// If it is not pinned there.
pub fn map_info(directory: &Path, name: &'static str) -> Result<PinnedMap, DataplaneError> {
    let info =
        MapInfo::from_pin(directory.join(name)).map_err(|source| DataplaneError::Map { name, source })?;
    Ok(PinnedMap {
        id: info.id(),
        capacity: info.max_entries(),
    })
}

impl Dataplane {
    /// Loads the programs, over pinned maps of the same schema if there are any. Attaches nothing.
    ///
    /// # Errors
    /// [`DataplaneError`]; nothing that was attached before has been touched.
    pub fn open(settings: &Settings) -> Result<Self, DataplaneError> {
        refuse_old_kernel(&rustix::system::uname().release().to_string_lossy())?;
        let directory = map_directory(&settings.pin_directory);
        std::fs::create_dir_all(&directory).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied if !rustix::process::geteuid().is_root() => {
                DataplaneError::Privileges
            }
            _ => DataplaneError::PinDirectory {
                path: directory.clone(),
                source,
            },
        })?;
        let adopted = directory.join("META").exists();
        if adopted {
            compare_with_schema(&directory)?;
        }
        let test_clock = u32::from(settings.test_clock);
        // Maps that are there may have been made with another capacity.
        let capacity = if adopted {
            capacity_of(&directory)?
        } else {
            settings.capacity
        };
        let cache_sets = cache::sets_of_each_cpu(capacity.cached_flows())?;
        let jiffy_ns = clock::kernel_tick().as_nanos() as u64;
        let mut loader = EbpfLoader::new();
        loader
            .default_map_pin_directory(&directory)
            .override_global("TEST_CLOCK", &test_clock, true)
            .override_global("CACHE_SETS", &cache_sets, true)
            .override_global("JIFFY_NS", &jiffy_ns, true);
        for (name, entries) in settings.capacity.entries() {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(OBJECT).map_err(explain_privileges)?;
        load(&mut ebpf)?;
        memory::let_go(OBJECT);
        let continuations = link_continuations::<Xdp>(&mut ebpf, &settings.pin_directory)?;
        #[cfg(feature = "kernel-log")]
        kernel_log::forward(&mut ebpf);
        let capacity = capacity_of(&directory)?;
        let mut maps = Maps::take(&mut ebpf, &directory)?;
        if !adopted {
            maps.mark_schema()?;
        }
        Ok(Self {
            ebpf,
            pin_directory: settings.pin_directory.clone(),
            continuations,
            tc_continuations: None,
            maps,
            adopted,
            capacity,
        })
    }

    /// The XDP program, for attaching and for test runs.
    ///
    /// # Errors
    /// If the object does not hold it.
    pub fn xdp(&mut self) -> Result<&mut Xdp, DataplaneError> {
        program(&mut self.ebpf, XDP_PROGRAM)
    }

    /// A program that goes on with a packet.
    ///
    /// # Errors
    /// If the object does not hold it.
    pub fn continuation(&mut self, continuation: Continuation) -> Result<&mut Xdp, DataplaneError> {
        program(&mut self.ebpf, continuation.program())
    }

    /// The TC ingress program; it and those that go on from it are loaded the first time.
    ///
    /// # Errors
    /// If the object does not hold it, or the kernel refuses one of them.
    pub fn ingress(&mut self) -> Result<&mut SchedClassifier, DataplaneError> {
        if self.tc_continuations.is_none() {
            load_one::<SchedClassifier>(&mut self.ebpf, INGRESS_PROGRAM)?;
            for continuation in Continuation::ALL {
                load_one::<SchedClassifier>(&mut self.ebpf, continuation.tc_program())?;
            }
            let id = link_continuations::<SchedClassifier>(&mut self.ebpf, &self.pin_directory)?;
            self.tc_continuations = Some(id);
        }
        program(&mut self.ebpf, INGRESS_PROGRAM)
    }

    /// A program that goes on with a packet after the TC ingress program.
    ///
    /// # Errors
    /// If the object does not hold it, or the kernel refuses one of them.
    pub fn tc_continuation(
        &mut self,
        continuation: Continuation,
    ) -> Result<&mut SchedClassifier, DataplaneError> {
        self.ingress()?;
        program(&mut self.ebpf, continuation.tc_program())
    }

    /// The TC egress program.
    ///
    /// # Errors
    /// If the object does not hold it.
    pub fn egress(&mut self) -> Result<&mut SchedClassifier, DataplaneError> {
        program(&mut self.ebpf, EGRESS_PROGRAM)
    }
}

fn refuse_old_kernel(release: &str) -> Result<(), DataplaneError> {
    if is_too_old(release) {
        return Err(DataplaneError::KernelTooOld {
            release: release.to_owned(),
        });
    }
    Ok(())
}

fn program<'e, P>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut P, DataplaneError>
where
    &'e mut P: TryFrom<&'e mut aya::programs::Program, Error = ProgramError>,
{
    let missing = || {
        DataplaneError::Object(EbpfError::FileError {
            path: PathBuf::from(name),
            error: io::Error::new(io::ErrorKind::NotFound, "the object holds no such program"),
        })
    };
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    program
        .try_into()
        .map_err(|source| DataplaneError::Program { name, source })
}

fn load(ebpf: &mut Ebpf) -> Result<(), DataplaneError> {
    load_one::<Xdp>(ebpf, XDP_PROGRAM)?;
    for continuation in Continuation::ALL {
        load_one::<Xdp>(ebpf, continuation.program())?;
    }
    load_one::<SchedClassifier>(ebpf, EGRESS_PROGRAM)
}

fn load_one<K: Kind>(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DataplaneError> {
    K::of(ebpf, name)?.load().map_err(|source| {
        if is_denied(&source) {
            DataplaneError::Privileges
        } else {
            DataplaneError::Program { name, source }
        }
    })
}

/// A kind of program that packets come in through.
trait Kind: Sized {
    /// The program that comes first.
    const FIRST: &'static str;
    /// The map of those that go on from it.
    const CONTINUATIONS: &'static str;

    fn of<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut Self, DataplaneError>;
    fn load(&mut self) -> Result<(), ProgramError>;
    fn fd(&self) -> Result<&ProgramFd, ProgramError>;
    fn id(&self) -> Result<u32, ProgramError>;
    fn name(continuation: Continuation) -> &'static str;
}

/// The two kinds differ in names alone, but aya gives them no trait in common.
macro_rules! kind {
    ($program:ty, $first:ident, $continuations:ident, $name:ident) => {
        impl Kind for $program {
            const FIRST: &'static str = $first;
            const CONTINUATIONS: &'static str = $continuations;

            fn of<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut Self, DataplaneError> {
                program(ebpf, name)
            }

            fn load(&mut self) -> Result<(), ProgramError> {
                Self::load(self)
            }

            fn fd(&self) -> Result<&ProgramFd, ProgramError> {
                Self::fd(self)
            }

            fn id(&self) -> Result<u32, ProgramError> {
                self.info().map(|info| info.id())
            }

            fn name(continuation: Continuation) -> &'static str {
                continuation.$name()
            }
        }
    };
}
kind!(Xdp, XDP_PROGRAM, CONTINUATIONS_MAP, program);
kind!(SchedClassifier, INGRESS_PROGRAM, TC_CONTINUATIONS_MAP, tc_program);

/// Fills in the map of the programs that go on with a packet, and pins it: the kernel empties such a map when nobody but
/// programs holds it any more. It belongs to these programs alone and has a name of its own, so that those of an earlier
/// agent keep theirs until they are replaced.
fn link_continuations<K: Kind>(ebpf: &mut Ebpf, pin_directory: &Path) -> Result<u32, DataplaneError> {
    let wrong = |source| DataplaneError::Map {
        name: K::CONTINUATIONS,
        source,
    };
    let missing = || MapError::InvalidName {
        name: K::CONTINUATIONS.to_owned(),
    };
    let map = ebpf.take_map(K::CONTINUATIONS).ok_or_else(|| wrong(missing()))?;
    let mut continuations = ProgramArray::try_from(map).map_err(wrong)?;
    for continuation in Continuation::ALL {
        let name = K::name(*continuation);
        let target = K::of(ebpf, name)?.fd();
        let target = target.map_err(|source| DataplaneError::Program { name, source })?;
        continuations
            .set(*continuation as u32, target, 0)
            .map_err(wrong)?;
    }
    let id = K::of(ebpf, K::FIRST)?.id();
    let id = id.map_err(|source| DataplaneError::Program {
        name: K::FIRST,
        source,
    })?;
    attach::create(&pin_directory.join(attach::CONTINUATIONS))?;
    let path = attach::continuations_pin(pin_directory, id);
    continuations
        .pin(&path)
        .map_err(|source| DataplaneError::Pin { path, source })?;
    Ok(id)
}

/// Without CAP_NET_ADMIN the kernel refuses the program type, without CAP_PERFMON the verifier refuses the pointers.
fn is_denied(error: &ProgramError) -> bool {
    let io_error = match error {
        ProgramError::LoadError { io_error, .. } => io_error,
        ProgramError::SyscallError(error) => &error.io_error,
        _ => return false,
    };
    let denied = matches!(io_error.kind(), io::ErrorKind::PermissionDenied);
    denied && !rustix::process::geteuid().is_root() || io_error.raw_os_error() == Some(PERMITTED)
}

/// `EPERM`, which is never about the program but about who loads it; the verifier also says `EACCES`.
const PERMITTED: i32 = rustix::io::Errno::PERM.raw_os_error();

/// The kernel answers "operation not permitted" to whoever lacks the capabilities.
fn explain_privileges(error: EbpfError) -> DataplaneError {
    let denied = match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) => {
            io_error.kind() == io::ErrorKind::PermissionDenied
        }
        _ => false,
    };
    if denied {
        DataplaneError::Privileges
    } else {
        DataplaneError::Object(error)
    }
}

/// How much fits into the pinned maps.
fn capacity_of(directory: &Path) -> Result<Capacity, DataplaneError> {
    let capacity = Capacity::of_maps(|name| map_info(directory, name).map(|info| info.capacity))?;
    capacity.ok_or_else(|| DataplaneError::Schema {
        name: "TENANTS",
        found: "another number of entries than the maps beside it".to_owned(),
        expected: "maps that were made together".to_owned(),
    })
}

/// Compares every pinned map with the schema before it is reused. Those whose capacity is chosen may have another.
fn compare_with_schema(directory: &Path) -> Result<(), DataplaneError> {
    for spec in MAPS {
        let path = directory.join(spec.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|source| DataplaneError::Map {
            name: spec.name,
            source,
        })?;
        let value_bytes = if spec.kind == "RingBuf" {
            0
        } else {
            spec.value_bytes
        };
        let same = info.key_size() == spec.key_bytes
            && info.value_size() == value_bytes
            && (spec.sized || info.max_entries() == spec.capacity);
        if !same {
            return Err(DataplaneError::Schema {
                name: spec.name,
                found: format!(
                    "keys of {} bytes, values of {} bytes, {} entries",
                    info.key_size(),
                    info.value_size(),
                    info.max_entries()
                ),
                expected: format!(
                    "keys of {} bytes, values of {value_bytes} bytes, {} entries",
                    spec.key_bytes, spec.capacity
                ),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_refused_in_one_sentence_before_anything_is_touched() {
        for release in ["6.5.13", "5.15.0-91-generic", "4.19"] {
            let error = refuse_old_kernel(release).unwrap_err().to_string();
            assert!(
                error.contains(release) && error.contains("6.6 or later"),
                "{error}"
            );
        }
        for release in ["6.6.0", "6.12.3-amd64", "7.0-rc1"] {
            refuse_old_kernel(release).unwrap();
        }
    }
}
