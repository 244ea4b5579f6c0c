//! What `--keep` is for: everything goes on running, with commands to try, until a signal ends it.

use std::env;
use std::io;
use std::process;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::report::Console;
use super::world::{BATCH, CHAT, World};
use crate::harness::{HarnessError, program};

/// What `curl` sends to a service.
const REQUEST: &str = "-H 'content-type: application/json' \
                       -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"stream\":true,\"max_tokens\":20}'";

/// The two signals that end the demo. From here on they no longer kill it, so this is made before anybody is told that
/// they may be sent.
#[derive(Debug)]
pub(super) struct EndSignals {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

// === impl EndSignals ===

impl EndSignals {
    /// Takes over SIGINT, which Ctrl-C sends, and SIGTERM.
    pub(super) fn listen() -> Result<Self, HarnessError> {
        let listen = || -> io::Result<Self> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let context = runtime.enter();
            let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            drop(context);
            Ok(Self {
                runtime,
                interrupt,
                terminate,
            })
        };
        listen().map_err(HarnessError::io("listen for", "signals"))
    }

    /// Waits for one of them.
    pub(super) fn wait(mut self) {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
        });
    }
}

/// Says what to try while everything runs. Each line that begins with two spaces is a command, to be pasted as it is;
/// each ends by itself.
pub(super) fn invite(console: &Console, world: &World) -> Result<(), HarnessError> {
    let agent = format!(
        "{} --socket {}",
        world.agent.program().display(),
        world.agent.socket().display()
    );
    // The one in force, unless a run with a failure never came that far.
    let policy = Some(world.file("policy-changed.yaml")).filter(|path| path.exists());
    let policy = policy.unwrap_or_else(|| world.file("policy.yaml"));
    let policy = policy.display();
    let [acme, initech, stranger] = requests(world)?;
    let lines = [
        "\nEverything runs. Try, as root in another terminal:".to_owned(),
        format!("  {agent} status"),
        format!("  {agent} tenant list"),
        format!("  {agent} backend list"),
        format!("  {agent} flows list"),
        format!("  {agent} policy show"),
        format!("  {agent} policy explain --from 10.1.1.10:40000 --to {CHAT}"),
        format!("  {agent} audit tail"),
        "Requests of two tenants, and of a stranger, who gets no answer:".to_owned(),
        format!("  {acme}"),
        format!("  {initech}"),
        format!("  {stranger}"),
        "A tenant's requests are refused while it is suspended:".to_owned(),
        format!("  {agent} tenant suspend acme"),
        format!("  {agent} policy explain --from 10.1.1.10:40000 --to {CHAT}"),
        format!("  {agent} tenant resume acme"),
        format!("After an edit of {policy}, all of it comes into force or nothing:"),
        format!("  {agent} policy apply {policy}"),
        "Ctrl-C here ends it and removes everything, and so does".to_owned(),
        format!("  kill -TERM {}", process::id()),
    ];
    for line in lines {
        console.line(line);
    }
    Ok(())
}

/// A request of acme, of initech and of the stranger, with the client that is there: `curl`, which shows the answer token
/// by token, or the load client of this workspace, which shows what became of it.
fn requests(world: &World) -> Result<[String; 3], HarnessError> {
    let run = world.lab.run();
    let inside = |client: &str| format!("ip netns exec {run}-{client}");
    if has_program("curl") {
        let curl = |address| format!("curl -sS -N -m 10 'http://{address}/v1/chat/completions' {REQUEST}");
        return Ok([
            format!("{} {}", inside("acme"), curl(CHAT)),
            format!("{} {}", inside("initech"), curl(BATCH)),
            format!("{} curl -sS -m 2 'http://{CHAT}/health'", inside("stranger")),
        ]);
    }
    let client = program("load-client", "enforcer-tests", None)?;
    let client = client.display();
    let request = |address| format!("{client} --requests 1 'http://{address}'");
    Ok([
        format!("{} {}", inside("acme"), request(CHAT)),
        format!("{} {}", inside("initech"), request(BATCH)),
        format!("{} {}", inside("stranger"), request(CHAT)),
    ])
}

fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(name).is_file())
}
