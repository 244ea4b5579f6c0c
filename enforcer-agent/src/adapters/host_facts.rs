//! Facts about this host for `doctor`. It looks and changes nothing.

use std::fs;
use std::io;
use std::path::Path;

use aya::programs::loaded_programs;
use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};
use rustix::fs::{Access, access, statfs};

use crate::config::Config;
use crate::pure::doctor::{HostFacts, InterfaceFacts, InterfaceState, XdpFacts};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Gathers what is known of this host, and of the interfaces and directories of a configuration.
pub async fn gather(config: Option<&Config>) -> HostFacts {
    let (permitted, interfaces) = match config {
        None => (Vec::new(), None),
        Some(config) => (directories(config), Some(interfaces(config).await)),
    };
    HostFacts {
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        kernel_types: fs::File::open("/sys/kernel/btf/vmlinux").is_ok(),
        // The width of the field differs between platforms; the value does not.
        bpf_file_system: statfs("/sys/fs/bpf").is_ok_and(|found| found.f_type as u64 == BPF_FS_MAGIC),
        jit: read_number("/proc/sys/net/core/bpf_jit_enable"),
        capabilities: rustix::thread::capabilities(None).map_or(0, |sets| sets.effective.bits()),
        forwarding: [
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv6/conf/all/forwarding",
        ]
        .map(|path| read_number(path).map(|number| number != 0)),
        directories: permitted,
        interfaces,
        configuration: None,
    }
}

fn read_number(path: &str) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Each directory that the agent writes to, or the nearest one above that exists, which it would be made in.
fn directories(config: &Config) -> Vec<(String, Result<(), String>)> {
    let mut wanted = vec![config.state_directory.as_path(), config.audit.directory.as_path()];
    wanted.extend(config.socket.parent());
    wanted.dedup();
    let writable = |directory: &Path| {
        let existing = directory
            .ancestors()
            .find(|ancestor| ancestor.exists())
            .unwrap_or(directory);
        access(existing, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|error| format!("{}: {}", existing.display(), io::Error::from(error)))
    };
    wanted
        .into_iter()
        .map(|directory| (directory.display().to_string(), writable(directory)))
        .collect()
}

async fn interfaces(config: &Config) -> Vec<InterfaceFacts> {
    let failed = |why: String| {
        let facts = |name: &String| InterfaceFacts {
            name: name.clone(),
            found: Err(why.clone()),
        };
        config.interfaces.iter().map(facts).collect()
    };
    let (connection, handle, _) = match rtnetlink::new_connection() {
        Ok(connection) => connection,
        Err(error) => return failed(error.to_string()),
    };
    let driver = tokio::spawn(connection);
    let mut found = Vec::new();
    for name in &config.interfaces {
        let pin = config.pin_directory().join("links").join(format!("xdp-{name}"));
        found.push(InterfaceFacts {
            name: name.clone(),
            found: look(&handle, name, &pin).await,
        });
    }
    driver.abort();
    found
}

async fn look(handle: &Handle, name: &str, pin: &Path) -> Result<Option<InterfaceState>, String> {
    // Asking for one by name answers with an error where there is none, so all are asked for.
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| error.to_string())?;
    let named = |link: &&LinkMessage| {
        link.attributes
            .iter()
            .any(|attribute| matches!(attribute, LinkAttribute::IfName(found) if found == name))
    };
    Ok(links.iter().find(named).map(|link| state_of(link, pin)))
}

fn state_of(link: &LinkMessage, pin: &Path) -> InterfaceState {
    let mut state = InterfaceState {
        is_up: link.header.flags.contains(LinkFlags::Up),
        is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        ..InterfaceState::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => {
                state.is_veth = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
            }
            LinkAttribute::Xdp(attributes) => state.xdp = program_of(attributes, pin),
            _ => {}
        }
    }
    state
}

fn program_of(attributes: &[LinkXdp], pin: &Path) -> Option<XdpFacts> {
    let program_id = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id)
            if *id != 0 =>
        {
            Some(*id)
        }
        _ => None,
    })?;
    let programs = loaded_programs().map_while(Result::ok);
    let name = programs
        .filter(|program| program.id() == program_id)
        .find_map(|program| program.name_as_str().map(str::to_owned));
    Some(XdpFacts {
        program_id,
        name,
        is_own: pin.exists(),
    })
}
