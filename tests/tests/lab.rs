//! The lab itself: hosts reach each other as they should, and nothing of a run outlives it.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use enforcer_tests::client::{LoadPlan, Summary, Target, run};
use enforcer_tests::lab::topology::{self, Leaf};
use enforcer_tests::lab::{BPFFS, Host, Lab, LabError, Process, REGISTRY, RunName, namespaces_of, sweep};
use enforcer_tests::privilege;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const LIMIT: Duration = Duration::from_secs(10);

fn privileged() -> bool {
    privilege::require("needs root, for network namespaces")
}

/// Runs a shell script on the host, for processes that misbehave in a given way.
fn shell(host: &Host, script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    host.spawn(command).unwrap()
}

/// A simulator on the host, that is ready.
fn serve(leaf: &Leaf) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inference-simulator"));
    command.args(["--name", leaf.host.name(), "--token-ms", "1"]);
    command.args(["--listen", "0.0.0.0:8000", "--listen", "[::]:8000"]);
    let mut process = leaf.host.spawn(command).unwrap();
    process
        .wait_for_line(LIMIT, |line| line.starts_with("listening on"))
        .unwrap();
    process
}

/// Ten requests from one host, each on a connection of its own.
fn load(from: &Leaf, address: IpAddr) -> Summary {
    let plan = LoadPlan {
        bind: Some(from.address(address.is_ipv6())),
        requests_per_second: Some(200.0),
        requests: Some(10),
        connect_timeout: Duration::from_millis(500),
        ..LoadPlan::new(Target::chat((address, 8000).into()))
    };
    from.host
        .block_on(|| run(plan, std::future::pending(), |_| ()))
        .unwrap()
        .unwrap()
}

/// Where a run's parts would be, whoever looks.
fn remains(run: &RunName) -> Vec<PathBuf> {
    let namespaces = namespaces_of(run)
        .unwrap()
        .into_iter()
        .map(|name| Path::new("/run/netns").join(name));
    let directories = [REGISTRY, BPFFS].map(|parent| Path::new(parent).join(run.as_str()));
    namespaces
        .chain(directories.into_iter().filter(|path| path.exists()))
        .collect()
}

/// Whether a process with this id is there and no zombie.
fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

#[test]
fn clients_reach_back_ends_through_the_balancer_over_both_families() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let routed = topology::routed(&mut lab, &["acme", "globex"], &["gpu-1", "gpu-2"]).unwrap();
    let _simulators: Vec<Process> = routed.back_ends.iter().map(serve).collect();
    for client in &routed.clients {
        for back_end in &routed.back_ends {
            for is_ipv6 in [false, true] {
                let summary = load(client, back_end.address(is_ipv6));
                assert_eq!(summary.ok, 10, "{summary:?}");
                assert_eq!(summary.back_ends[back_end.host.name()], 10);
            }
        }
    }
    let (client, gpu) = (&routed.clients[0], &routed.back_ends[0]);
    client.port.down().unwrap();
    assert_eq!(load(client, gpu.ipv4.into()).ok, 0, "its cable is pulled");
    client.port.up().unwrap();
    for (router, is_ipv6) in [("10.1.1.1", false), ("2001:db8:1:1::1", true)] {
        client.host.add_route("default", router).unwrap();
        assert_eq!(load(client, gpu.address(is_ipv6)).ok, 10, "its cable is back");
    }
    lab.close().unwrap();
}

#[test]
fn links_carry_whole_checksums_and_known_neighbours() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let (acme, balancer) = (lab.host("acme").unwrap(), lab.host("lb").unwrap());
    let link = lab
        .link(&acme, &balancer, &["10.1.1.10/24"], &["10.1.1.1/24"])
        .unwrap();
    link.fix_neighbours().unwrap();
    for port in [&link.a, &link.b] {
        let features = port.host.run(&format!("ethtool -k {}", port.device)).unwrap();
        for feature in [
            "tx-checksumming: off",
            "tx-tcp-segmentation: off",
            "tx-tcp6-segmentation: off",
            "generic-receive-offload: on",
        ] {
            assert!(features.contains(feature), "no {feature} in\n{features}");
        }
        let device = port.host.ip(&format!("link show dev {}", port.device)).unwrap();
        assert!(device.contains(&port.mac.to_string()), "{device}");
    }
    let neighbours = acme.ip("neighbour show").unwrap();
    assert_eq!(
        neighbours.trim_end(),
        format!("10.1.1.1 dev lb lladdr {} PERMANENT ", link.b.mac).trim_end()
    );
}

#[test]
fn back_ends_in_a_rack_take_service_traffic_only_by_their_own_address() {
    if !privileged() {
        return;
    }
    let services = ["192.0.2.10", "2001:db8::10"];
    let mut lab = Lab::new().unwrap();
    let rack = topology::rack(&mut lab, &["acme"], &["gpu-1"], &services).unwrap();
    let (client, back_end) = (&rack.clients[0], &rack.back_ends[0]);
    let _simulator = serve(back_end);
    for service in services.map(|service| service.parse::<IpAddr>().unwrap()) {
        // On the link, nobody answers for the service address; delivered to the back end, it is accepted.
        client
            .host
            .ip(&format!("route replace {service} dev rack"))
            .unwrap();
        assert_eq!(load(client, service).ok, 0);
        let back_end = back_end.address(service.is_ipv6());
        client
            .host
            .ip(&format!("route replace {service} via {back_end}"))
            .unwrap();
        assert_eq!(load(client, service).back_ends.get("gpu-1"), Some(&10));
    }
}

#[test]
fn what_is_entered_is_the_host_and_nothing_else() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let host = lab.host("alone").unwrap();
    let listener = host.enter(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    assert!(host.enter(|| TcpStream::connect(address).is_ok()).unwrap());
    assert!(TcpStream::connect(address).is_err(), "reached from outside");
    let devices = host.ip("-brief link show").unwrap();
    assert_eq!(devices.lines().count(), 1, "only loopback: {devices}");
    let panic = std::panic::catch_unwind(|| host.enter(|| panic!("inside"))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"inside"));
}

#[test]
fn names_and_addresses_are_checked() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    for name in ["", "UPPER", "thirteen-long", "a/b", "a b"] {
        assert!(matches!(lab.host(name), Err(LabError::HostName { .. })), "{name}");
    }
    let (one, two) = (lab.host("one").unwrap(), lab.host("two").unwrap());
    assert!(matches!(lab.host("one"), Err(LabError::HostTaken { .. })));
    assert!(matches!(
        lab.link(&one, &two, &["10.0.0.1"], &[]),
        Err(LabError::Prefix { .. })
    ));
    assert!(matches!(
        one.add_route("default", "router"),
        Err(LabError::Address { .. })
    ));
    let failure = one.add_route("default", "192.0.2.1").unwrap_err().to_string();
    assert!(
        failure.contains("route add default via 192.0.2.1` failed with"),
        "{failure}"
    );
}

#[test]
fn processes_say_how_they_ended() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let host = lab.host("one").unwrap();
    let mut crash = shell(&host, "echo no GPU found >&2; exit 3");
    let error = crash.wait_for_line(LIMIT, |line| line == "ready").unwrap_err();
    assert!(
        matches!(&error, LabError::Ended { status, tail, .. } if status.code() == Some(3) && tail == "no GPU found\n")
    );
    let mut silent = shell(&host, "sleep 60");
    let error = silent
        .wait_for_line(Duration::from_millis(50), |_| true)
        .unwrap_err();
    assert!(matches!(error, LabError::Timeout { .. }));
    let mut stubborn = shell(&host, "trap '' TERM; echo ready; while :; do sleep 60; done");
    stubborn.wait_for_line(LIMIT, |line| line == "ready").unwrap();
    let status = stubborn.terminate(Duration::from_millis(50)).unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(Signal::KILL.as_raw())
    );
    let mut endless = Command::new("sleep");
    endless.arg("60");
    assert!(matches!(
        host.output(endless, Duration::from_millis(50)),
        Err(LabError::Timeout { .. })
    ));
}

#[test]
fn a_dropped_lab_leaves_nothing_behind_not_even_after_a_panic() {
    if !privileged() {
        return;
    }
    let mut lab = Lab::new().unwrap();
    let run = lab.run().clone();
    let host = lab.host("one").unwrap();
    let mut process = shell(&host, "trap '' TERM; echo ready; while :; do sleep 60; done");
    process.wait_for_line(LIMIT, |line| line == "ready").unwrap();
    fs::write(lab.directory().join("policy.yaml"), "").unwrap();
    pin(&run);
    assert!(remains(&run).len() >= 2);
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab = lab;
        panic!("a test failed");
    }));
    assert!(panic.is_err());
    assert_eq!(remains(&run), Vec::<PathBuf>::new());
    assert!(!process.is_running().unwrap());
}

/// Makes directories where a run pins its programs. Without a mounted bpffs there is nothing to remove.
fn pin(run: &RunName) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        fs::create_dir_all(Path::new(BPFFS).join(run.as_str()).join("links")).unwrap();
    }
}

/// Another process with a lab.
struct Holder {
    child: Child,
    run: RunName,
    guard: u32,
    process: u32,
}

impl Holder {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_namespace-lab"))
            .arg("hold")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["run", run, "guard", guard, "process", process] = words[..] else {
            panic!("it said {line:?}")
        };
        let (run, guard, process) = (
            run.parse().unwrap(),
            guard.parse().unwrap(),
            process.parse().unwrap(),
        );
        pin(&run);
        Self {
            child,
            run,
            guard,
            process,
        }
    }

    /// The guard inherited standard error: its end is the guard's end.
    fn await_guard(&mut self) -> String {
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        said
    }
}

impl Drop for Holder {
    /// Also when an assertion failed, so that no test leaves a lab behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_killed_lab_leaves_nothing_behind() {
    if !privileged() {
        return;
    }
    let mut holder = Holder::start();
    assert!(remains(&holder.run).len() >= 4 && runs(holder.process));
    holder.child.kill().unwrap();
    holder.child.wait().unwrap();
    assert_eq!(holder.await_guard(), "");
    assert_eq!(remains(&holder.run), Vec::<PathBuf>::new());
    assert!(!runs(holder.process));
}

#[test]
fn a_lab_survives_the_loss_of_its_guard() {
    if !privileged() {
        return;
    }
    let mut holder = Holder::start();
    kill(holder.guard);
    assert!(remains(&holder.run).len() >= 4);
    drop(holder.child.stdin.take());
    assert!(holder.child.wait().unwrap().success());
    assert_eq!(remains(&holder.run), Vec::<PathBuf>::new());
}

#[test]
fn a_sweep_removes_dead_runs_and_spares_the_living() {
    if !privileged() {
        return;
    }
    let mut living = Holder::start();
    let mut dead = Holder::start();
    kill(dead.guard);
    dead.child.kill().unwrap();
    dead.child.wait().unwrap();
    // Another test may begin a lab at any time, and sweep before this one does.
    sweep().unwrap();
    assert_eq!(remains(&dead.run), Vec::<PathBuf>::new());
    assert!(!runs(dead.process));
    assert!(remains(&living.run).len() >= 4 && runs(living.process));
    living.child.stdin.take().unwrap().flush().unwrap();
    assert!(living.child.wait().unwrap().success());
    assert_eq!(living.await_guard(), "");
    assert_eq!(remains(&living.run), Vec::<PathBuf>::new());
}

/// Kills a process that is no child of this one and waits until it has ended.
fn kill(pid: u32) {
    let process = pidfd_open(
        Pid::from_raw(pid.try_into().unwrap()).unwrap(),
        PidfdFlags::empty(),
    )
    .unwrap();
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    let mut descriptors = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut descriptors, None), Ok(1));
}
