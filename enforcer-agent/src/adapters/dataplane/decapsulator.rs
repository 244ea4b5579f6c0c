//! The other end of `Ipip` and `Gue`: attaches the program that takes outer headers off, on a back end's host.
//!
//! There is no daemon: the link is pinned and the program stays until it is taken off.

use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::programs::Xdp;
use enforcer_common::abi::tunnel::{TUNNEL_V4, TUNNEL_V6, TunnelSources};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::attach::{self, AttachMode, Mode, attach_xdp};
use super::{DataplaneError, explain_privileges, program, refuse_old_kernel};
use crate::pure::compile::address_of;

/// The kernel object, built for the BPF target by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decapsulator"));
/// Name of its program.
const PROGRAM: &str = "enforcer_decap";
/// Where links are pinned, unless a test says otherwise.
const PIN_DIRECTORY: &str = "/sys/fs/bpf/enforcer-decapsulator";

/// Has an interface take the outer header off what comes from these prefixes, in place of what it was told before.
///
/// # Errors
/// [`DataplaneError`]; what was attached before stays.
pub fn decapsulate(
    interface: &str,
    ipv4: Option<Ipv4Net>,
    ipv6: Option<Ipv6Net>,
    directory: Option<&Path>,
) -> Result<Mode, DataplaneError> {
    refuse_old_kernel(&rustix::system::uname().release().to_string_lossy())?;
    let ifindex = attach::index_of(interface)?;
    let pin = pin_of(interface, directory);
    if let Some(directory) = pin.parent() {
        attach::create(directory)?;
    }
    let mut ebpf = EbpfLoader::new()
        .override_global("SOURCES", &sources(ipv4, ipv6), true)
        .load(OBJECT)
        .map_err(explain_privileges)?;
    let program: &mut Xdp = program(&mut ebpf, PROGRAM)?;
    program.load().map_err(|source| DataplaneError::Program {
        name: PROGRAM,
        source,
    })?;
    attach_xdp(PROGRAM, program, interface, ifindex, AttachMode::Auto, &pin)
}

/// Has an interface no longer do that.
///
/// # Errors
/// [`DataplaneError::PinDirectory`].
pub fn stop_decapsulating(interface: &str, directory: Option<&Path>) -> Result<(), DataplaneError> {
    attach::remove_file(&pin_of(interface, directory))
}

fn pin_of(interface: &str, directory: Option<&Path>) -> PathBuf {
    directory
        .unwrap_or(Path::new(PIN_DIRECTORY))
        .join(format!("xdp-{interface}"))
}

fn sources(ipv4: Option<Ipv4Net>, ipv6: Option<Ipv6Net>) -> TunnelSources {
    let mut sources = TunnelSources::ZERO;
    if let Some(net) = ipv4 {
        sources.families |= TUNNEL_V4;
        sources.v4 = u32::from(net.network()).to_be();
        sources.v4_mask = u32::from(net.netmask()).to_be();
    }
    if let Some(net) = ipv6 {
        sources.families |= TUNNEL_V6;
        sources.v6 = address_of(IpNet::from(net).network());
        sources.v6_mask = address_of(net.netmask().into());
    }
    sources
}
