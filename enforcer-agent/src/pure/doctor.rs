//! From facts about a host to what would keep the agent from running there, and what to do about it.
//!
//! It owns the requirements: kernel, privileges, mounts, interfaces. It never looks anything up: the facts come from
//! `adapters::host_facts`.

use serde::Serialize;

/// The oldest kernel, major and minor: 6.6 brought TCX links (kernel commit e420bed02507).
pub const OLDEST_KERNEL: (u32, u32) = (6, 6);

/// Capability numbers of `linux/capability.h`, with what each is needed for.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (39, "CAP_BPF", "to load programs and make maps"),
    (12, "CAP_NET_ADMIN", "to attach programs to interfaces"),
    (
        38,
        "CAP_PERFMON",
        "for the verifier to accept pointer arithmetic in programs",
    ),
];
/// `CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_NET_ADMIN: u32 = 12;

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel_release: String,
    /// Whether `/sys/kernel/btf/vmlinux` can be read.
    pub kernel_types: bool,
    /// Whether a BPF file system is mounted at `/sys/fs/bpf`.
    pub bpf_file_system: bool,
    /// `net.core.bpf_jit_enable`; `None` if it cannot be read.
    pub jit: Option<u32>,
    /// Effective capabilities of this process, a bit each.
    pub capabilities: u64,
    /// `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding`; `None` if they cannot be read.
    pub forwarding: [Option<bool>; 2],
    /// Directories that the agent writes to, with why it could not.
    pub directories: Vec<(String, Result<(), String>)>,
    /// The interfaces of the configuration; `None` without a configuration.
    pub interfaces: Option<Vec<InterfaceFacts>>,
    /// The configuration's path and why it cannot be used.
    pub configuration: Option<(String, Result<(), String>)>,
}

/// What is known of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// `None` if there is no such interface; otherwise what it is like.
    pub found: Result<Option<InterfaceState>, String>,
}

/// What an interface is like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceState {
    /// Whether it was set up.
    pub is_up: bool,
    /// Whether it is one end of a veth pair.
    pub is_veth: bool,
    /// Whether it has Ethernet addresses.
    pub is_ethernet: bool,
    /// The XDP program that hangs on it.
    pub xdp: Option<XdpFacts>,
}

/// An XDP program on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpFacts {
    /// The kernel's id.
    pub program_id: u32,
    /// Its name, if it may be asked for.
    pub name: Option<String>,
    /// Whether it hangs there by a link that this instance pinned.
    pub is_own: bool,
}

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// As it should be.
    Ok,
    /// The agent runs, but look at this.
    Warning,
    /// The agent does not run like this.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was found, and what to do about it.
    pub finding: String,
}

/// All findings, in the order in which to work them off.
#[must_use]
pub fn judge(facts: &HostFacts) -> Vec<Check> {
    let HostFacts {
        kernel_release,
        kernel_types,
        bpf_file_system,
        jit,
        capabilities,
        forwarding,
        directories,
        interfaces,
        configuration,
    } = facts;
    let mut checks = vec![
        kernel(kernel_release),
        yes_or_problem(
            "kernel types",
            *kernel_types,
            "the kernel describes its types (BTF)",
            "/sys/kernel/btf/vmlinux cannot be read: run a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
        yes_or_problem(
            "BPF file system",
            *bpf_file_system,
            "it is mounted at /sys/fs/bpf",
            "run `mount -t bpf bpf /sys/fs/bpf`; programs are pinned there, so that they outlive the agent",
        ),
        jit_compiler(*jit),
    ];
    checks.extend(CAPABILITIES.map(|(bit, name, purpose)| capability(*capabilities, bit, name, purpose)));
    checks.extend(configuration.iter().map(|(path, usable)| match usable {
        Ok(()) => check("configuration", State::Ok, format!("{path} is valid")),
        Err(why) => check("configuration", State::Problem, why.clone()),
    }));
    checks.extend(directories.iter().map(|(path, writable)| match writable {
        Ok(()) => check("directory", State::Ok, format!("{path} can be written")),
        Err(why) => check(
            "directory",
            State::Problem,
            format!("{path} cannot be written: {why}"),
        ),
    }));
    checks.extend(interfaces.iter().flatten().flat_map(interface));
    let families = ["IPv4", "IPv6"].into_iter().zip(forwarding);
    checks.extend(families.map(|(family, forwarding)| forwarding_of(family, *forwarding)));
    checks
}

fn check(name: impl Into<String>, state: State, finding: impl Into<String>) -> Check {
    Check {
        name: name.into(),
        state,
        finding: finding.into(),
    }
}

fn yes_or_problem(name: &str, yes: bool, good: &str, bad: &str) -> Check {
    if yes {
        check(name, State::Ok, good)
    } else {
        check(name, State::Problem, bad)
    }
}

/// Major and minor number of a release such as `6.18.44-generic`.
/// Whether a kernel release is known to be too old; a release that is no number is given the benefit of the doubt.
#[must_use]
pub fn is_too_old(release: &str) -> bool {
    version(release).is_some_and(|found| found < OLDEST_KERNEL)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn kernel(release: &str) -> Check {
    let (major, minor) = OLDEST_KERNEL;
    match version(release) {
        Some(found) if found >= OLDEST_KERNEL => {
            check("kernel", State::Ok, format!("{release} has what is needed"))
        }
        Some(_) => check(
            "kernel",
            State::Problem,
            format!("{release} is too old: run {major}.{minor} or later"),
        ),
        None => check(
            "kernel",
            State::Warning,
            format!("{release} is no release number; {major}.{minor} is needed"),
        ),
    }
}

fn jit_compiler(jit: Option<u32>) -> Check {
    match jit {
        Some(1) => check("BPF compiler", State::Ok, "programs are compiled to machine code"),
        Some(2) => check(
            "BPF compiler",
            State::Warning,
            "it writes every program to the kernel log: run `sysctl net.core.bpf_jit_enable=1`",
        ),
        Some(0) => check(
            "BPF compiler",
            State::Warning,
            "programs are interpreted, many times slower: run `sysctl net.core.bpf_jit_enable=1`",
        ),
        Some(_) | None => check(
            "BPF compiler",
            State::Warning,
            "net.core.bpf_jit_enable cannot be read: programs may be interpreted, many times slower",
        ),
    }
}

fn capability(held: u64, bit: u32, name: &str, purpose: &str) -> Check {
    let has = |bit: u32| held >> bit & 1 == 1;
    if has(bit) || (bit != CAP_NET_ADMIN && has(CAP_SYS_ADMIN)) {
        return check(name, State::Ok, format!("held, {purpose}"));
    }
    check(
        name,
        State::Problem,
        format!("missing, {purpose}: run the agent as root or give it {name}"),
    )
}

fn forwarding_of(family: &str, forwarding: Option<bool>) -> Check {
    let finding = match forwarding {
        Some(true) => "on: packets that are for no service are routed by this host as before",
        Some(false) => {
            "off: services do not need it; packets that are for no service are not routed by this host"
        }
        None => "not known; services do not need it",
    };
    check(format!("{family} forwarding"), State::Ok, finding)
}

fn interface(facts: &InterfaceFacts) -> Vec<Check> {
    let title = format!("interface {}", facts.name);
    let state = match &facts.found {
        Err(why) => {
            return vec![check(
                title,
                State::Problem,
                format!("it cannot be looked at: {why}"),
            )];
        }
        Ok(None) => {
            let finding = "there is none of this name in this network namespace: correct `interfaces`, `ip link` lists them";
            return vec![check(title, State::Problem, finding)];
        }
        Ok(Some(state)) => state,
    };
    let InterfaceState {
        is_up,
        is_veth,
        is_ethernet,
        xdp,
    } = state;
    let mut checks = Vec::new();
    if !is_ethernet {
        checks.push(check(
            &title,
            State::Problem,
            "it carries no Ethernet frames, which the programs judge",
        ));
    }
    if let Some(finding) = xdp.as_ref().and_then(foreign_program) {
        checks.push(check(&title, State::Problem, finding));
    }
    if !is_up {
        checks.push(check(
            &title,
            State::Warning,
            format!("it is down: run `ip link set {} up`", facts.name),
        ));
    }
    if *is_veth {
        checks.push(check(
            &title,
            State::Warning,
            "it is a veth: for XDP to send frames, its peer needs GRO or an XDP program, and local senders behind it must \
             not leave checksums to hardware (`ethtool -K PEER gro on tx off`)",
        ));
    }
    if checks.is_empty() {
        let finding = if xdp.is_some() {
            "up, with this instance's program"
        } else {
            "up, without an XDP program"
        };
        checks.push(check(title, State::Ok, finding));
    }
    checks
}

fn foreign_program(xdp: &XdpFacts) -> Option<String> {
    let XdpFacts {
        program_id,
        name,
        is_own,
    } = xdp;
    let name = name.as_deref().unwrap_or("?");
    (!is_own).then(|| {
        format!(
            "another XDP program hangs on it, `{name}` with id {program_id}: take it off first, it will not be displaced"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> HostFacts {
        HostFacts {
            kernel_release: "6.6.0-generic".into(),
            kernel_types: true,
            bpf_file_system: true,
            jit: Some(1),
            capabilities: 1 << 39 | 1 << 38 | 1 << 12,
            forwarding: [Some(true), None],
            directories: vec![("/var/lib/enforcer".into(), Ok(()))],
            interfaces: Some(vec![InterfaceFacts {
                name: "eth0".into(),
                found: Ok(Some(InterfaceState {
                    is_up: true,
                    is_ethernet: true,
                    ..InterfaceState::default()
                })),
            }]),
            configuration: Some(("agent.yaml".into(), Ok(()))),
        }
    }

    /// The findings that are worse than ok, after a change to a good host.
    fn findings(spoil: impl Fn(&mut HostFacts)) -> Vec<Check> {
        let mut facts = good();
        spoil(&mut facts);
        judge(&facts)
            .into_iter()
            .filter(|check| check.state != State::Ok)
            .collect()
    }

    fn one(spoil: impl Fn(&mut HostFacts)) -> (State, String, String) {
        let mut found = findings(spoil);
        assert_eq!(found.len(), 1, "{found:#?}");
        let Check { name, state, finding } = found.remove(0);
        (state, name, finding)
    }

    #[test]
    fn a_good_host_has_nothing_to_say_against() {
        assert_eq!(findings(|_| {}), []);
        assert_eq!(findings(|facts| facts.capabilities = 1 << 21 | 1 << 12), []);
    }

    #[test]
    fn every_requirement_is_missed_by_name() {
        type Spoil = fn(&mut HostFacts);
        let cases: [(Spoil, State, &str, &str); 13] = [
            (
                |facts| facts.kernel_release = "6.5.9".into(),
                State::Problem,
                "kernel",
                "run 6.6 or later",
            ),
            (
                |facts| facts.kernel_release = "5.15".into(),
                State::Problem,
                "kernel",
                "5.15 is too old",
            ),
            (
                |facts| facts.kernel_release = "custom".into(),
                State::Warning,
                "kernel",
                "no release number",
            ),
            (
                |facts| facts.kernel_types = false,
                State::Problem,
                "kernel types",
                "CONFIG_DEBUG_INFO_BTF",
            ),
            (
                |facts| facts.bpf_file_system = false,
                State::Problem,
                "BPF file system",
                "mount -t bpf",
            ),
            (
                |facts| facts.jit = Some(0),
                State::Warning,
                "BPF compiler",
                "interpreted",
            ),
            (
                |facts| facts.jit = None,
                State::Warning,
                "BPF compiler",
                "cannot be read",
            ),
            (
                |facts| facts.capabilities ^= 1 << 39,
                State::Problem,
                "CAP_BPF",
                "load programs",
            ),
            (
                |facts| facts.capabilities ^= 1 << 38,
                State::Problem,
                "CAP_PERFMON",
                "verifier",
            ),
            (
                |facts| facts.capabilities = 1 << 21,
                State::Problem,
                "CAP_NET_ADMIN",
                "attach programs",
            ),
            (
                |facts| facts.configuration = Some(("a".into(), Err("a:1:1: no".into()))),
                State::Problem,
                "configuration",
                "a:1:1: no",
            ),
            (
                |facts| facts.directories[0].1 = Err("read-only".into()),
                State::Problem,
                "directory",
                "/var/lib/enforcer cannot be written: read-only",
            ),
            (
                |facts| facts.interfaces.as_mut().unwrap()[0].found = Ok(None),
                State::Problem,
                "interface eth0",
                "ip link",
            ),
        ];
        for (spoil, state, name, part) in cases {
            let (found_state, found_name, finding) = one(spoil);
            assert_eq!((found_state, found_name.as_str()), (state, name), "{finding}");
            assert!(finding.contains(part), "{finding}");
        }
    }

    fn with_interface(spoil: impl Fn(&mut InterfaceState)) -> Vec<(State, String)> {
        let found = findings(|facts| {
            if let Ok(Some(state)) = &mut facts.interfaces.as_mut().unwrap()[0].found {
                spoil(state);
            }
        });
        found
            .into_iter()
            .map(|check| (check.state, check.finding))
            .collect()
    }

    #[test]
    fn a_foreign_program_is_named_and_an_own_one_is_welcome() {
        let program = |is_own| XdpFacts {
            program_id: 7,
            name: Some("xdp_dispatcher".into()),
            is_own,
        };
        assert_eq!(with_interface(|state| state.xdp = Some(program(true))), []);
        let foreign = with_interface(|state| state.xdp = Some(program(false)));
        assert_eq!(foreign.len(), 1);
        assert!(foreign[0].1.contains("`xdp_dispatcher` with id 7"), "{foreign:?}");
        assert_eq!(foreign[0].0, State::Problem);
    }

    #[test]
    fn what_is_wrong_with_an_interface_is_listed_item_by_item() {
        let found = with_interface(|state| {
            *state = InterfaceState {
                is_veth: true,
                ..InterfaceState::default()
            };
        });
        let states: Vec<State> = found.iter().map(|(state, _)| *state).collect();
        assert_eq!(
            states,
            [State::Problem, State::Warning, State::Warning],
            "{found:?}"
        );
    }
}
