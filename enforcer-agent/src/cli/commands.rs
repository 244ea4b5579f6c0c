//! From a command to the call that carries it out, and from the answer to what is written.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use serde::Serialize;

use super::arguments::{Audit, Backend, Command, CommandLine, Flows, Format, Maps, Service, Tenant};
use super::render::{self, Render};
use super::{CliError, capture, decapsulate, doctor, output, policy, run};
use crate::api::client::{Client, ClientError};
use crate::api::reply::{AuditTailReply, DetachReply};
use crate::api::{FlowFilter, MAX_ROWS, Reply, Request};
use crate::config::{Config, DEFAULT_SOCKET};
use crate::daemon;
use crate::pure::audit::{AuditRecord, Entry, Kind};

/// Between two looks at the audit log.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(300);

/// Carries a command out.
pub(super) fn execute(command_line: CommandLine) -> Result<(), CliError> {
    let CommandLine {
        socket,
        output: format,
        command,
    } = command_line;
    let given = socket;
    let socket = given.clone().unwrap_or_else(|| DEFAULT_SOCKET.into());
    let remote = |request| block_on(ask(&socket, request))?.and_then(|reply| show(reply, format));
    match command {
        Command::Run { config } => run::run(&config, format),
        Command::Doctor { config } => block_on(doctor::examine(config.as_deref(), format))?,
        Command::Completions { shell } => completions(shell),
        Command::Decapsulate(command) => decapsulate::execute(command, format),
        Command::Detach { config } => block_on(detach(given, config.as_deref(), format))?,
        Command::Status => remote(Request::Status),
        Command::Policy(command) => policy::execute(command, &socket, format),
        Command::Tenant(Tenant::List) => remote(Request::TenantList),
        Command::Tenant(Tenant::Suspend { name }) => remote(Request::TenantSuspend { name }),
        Command::Tenant(Tenant::Resume { name }) => remote(Request::TenantResume { name }),
        Command::Backend(Backend::List) => remote(Request::BackendList),
        Command::Backend(Backend::Drain { name }) => remote(Request::BackendDrain { name }),
        Command::Backend(Backend::Undrain { name }) => remote(Request::BackendUndrain { name }),
        Command::Service(Service::List) => remote(Request::ServiceList),
        Command::Flows(Flows::List {
            tenant,
            service,
            backend,
            limit,
        }) => remote(Request::FlowsList {
            limit,
            filter: FlowFilter {
                tenant,
                service,
                backend,
            },
        }),
        Command::Capture(command) => block_on(capture::execute(command, &socket, format))?,
        Command::Flows(Flows::Watch {
            tenant,
            service,
            backend,
            count,
        }) => {
            let filter = FlowFilter {
                tenant,
                service,
                backend,
            };
            block_on(watch(&socket, filter, count, format))?
        }
        Command::Maps(Maps::List) => remote(Request::MapsList),
        Command::Maps(Maps::Dump { name, limit }) => remote(Request::MapsDump { name, limit }),
        Command::Audit(Audit::Tail { lines, from, follow }) => {
            block_on(tail(&socket, lines, from, follow, format))?
        }
    }
}

pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Start)?;
    Ok(runtime.block_on(work))
}

pub(super) async fn ask(socket: &Path, request: Request) -> Result<Reply, CliError> {
    Ok(Client::connect(socket).await?.call(request).await?)
}

/// Writes a reply; every one in full as JSON, and as a table or a sentence.
pub(super) fn show(reply: Reply, format: Format) -> Result<(), CliError> {
    match reply {
        Reply::Status(reply) => write(&*reply, format),
        Reply::PolicyApply(reply) => write(&reply, format),
        Reply::PolicyShow(reply) => write(&reply, format),
        Reply::PolicyHistory(reply) => write(&reply, format),
        Reply::PolicyRollback(reply) => write(&reply, format),
        Reply::PolicyExplain(reply) => write(&*reply, format),
        Reply::TenantList(reply) => write(&reply, format),
        Reply::TenantSuspend(reply) => write_change(&reply, "suspended", format),
        Reply::TenantResume(reply) => write_change(&reply, "resumed", format),
        Reply::BackendList(reply) => write(&reply, format),
        Reply::BackendDrain(reply) => write_change(&reply, "drained", format),
        Reply::BackendUndrain(reply) => write_change(&reply, "undrained", format),
        Reply::ServiceList(reply) => write(&reply, format),
        Reply::FlowsList(reply) => write(&reply, format),
        Reply::MapsList(reply) => write(&reply, format),
        Reply::MapsDump(reply) => write(&reply, format),
        Reply::Detach(reply) => write(&reply, format),
        other @ (Reply::AuditTail(_)
        | Reply::CaptureBegin(_)
        | Reply::CaptureRead(_)
        | Reply::CaptureEnd(_)
        | Reply::Metrics(_)) => Err(CliError::OtherReply(Box::new(other))),
    }
}

pub(super) fn write(reply: &(impl Render + Serialize), format: Format) -> Result<(), CliError> {
    match format {
        Format::Table => output::text(&reply.render()),
        Format::Json => output::json(reply),
    }
}

fn write_change(reply: &crate::api::reply::ChangeReply, done: &str, format: Format) -> Result<(), CliError> {
    match format {
        Format::Table => output::text(&render::change(reply, done)),
        Format::Json => output::json(reply),
    }
}

fn completions(shell: clap_complete::Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "enforcer-agent", &mut script);
    output::text(&String::from_utf8_lossy(&script))
}

/// Has the daemon detach, or does it itself if none answers and the configuration says what there is.
async fn detach(socket: Option<PathBuf>, config: Option<&Path>, format: Format) -> Result<(), CliError> {
    let config = config.map(Config::load).transpose()?;
    let configured = config.as_ref().map(|config| config.socket.clone());
    let socket = socket.or(configured).unwrap_or_else(|| DEFAULT_SOCKET.into());
    match (ask(&socket, Request::Detach).await, config) {
        (Ok(reply), _) => show(reply, format),
        (Err(CliError::Client(ClientError::Unreachable { .. })), Some(config)) => {
            write(&detach_without_agent(config)?, format)
        }
        (Err(error), _) => Err(error),
    }
}

fn detach_without_agent(config: Config) -> Result<DetachReply, CliError> {
    let pins = config.pin_directory();
    if !pins.exists() {
        return Ok(DetachReply {
            interfaces: Vec::new(),
            pins: Vec::new(),
        });
    }
    daemon::remove_instance(&config)?;
    Ok(DetachReply {
        interfaces: config.interfaces,
        pins: vec![pins.display().to_string()],
    })
}

/// Prints the last records, or those from a number on; then, if asked, further ones as they come.
async fn tail(
    socket: &Path,
    lines: u32,
    from: Option<u64>,
    follow: bool,
    format: Format,
) -> Result<(), CliError> {
    let mut client = Client::connect(socket).await?;
    let mut request = (from, lines.min(MAX_ROWS));
    loop {
        let reply = records(&mut client, request).await?;
        for record in &reply.records {
            write_record(record, format)?;
        }
        if !follow {
            return Ok(());
        }
        if reply.records.is_empty() {
            tokio::time::sleep(FOLLOW_INTERVAL).await;
        }
        request = (Some(reply.next), MAX_ROWS);
    }
}

/// Records of the audit log: a number of them from a sequence number on, or the last ones.
async fn records(client: &mut Client, (from, limit): (Option<u64>, u32)) -> Result<AuditTailReply, CliError> {
    match client.call(Request::AuditTail { from, limit }).await? {
        Reply::AuditTail(reply) => Ok(reply),
        other => Err(CliError::OtherReply(Box::new(other))),
    }
}

fn write_record(record: &AuditRecord, format: Format) -> Result<(), CliError> {
    match format {
        Format::Table => output::text(&render::record(record)),
        Format::Json => output::json_line(record),
    }
}

/// Prints what happens to flows from now on, until there were as many as asked for or somebody interrupts it.
async fn watch(
    socket: &Path,
    filter: FlowFilter,
    count: Option<u64>,
    format: Format,
) -> Result<(), CliError> {
    let interrupted = output::interrupted()?;
    tokio::pin!(interrupted);
    let mut client = Client::connect(socket).await?;
    let mut next = records(&mut client, (None, 1)).await?.next;
    let mut left = count.unwrap_or(u64::MAX);
    loop {
        let reply = records(&mut client, (Some(next), MAX_ROWS)).await?;
        next = reply.next;
        for record in reply.records.iter().filter(|record| filter.takes(&record.entry)) {
            write_record(record, format)?;
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
        // Also where one reply follows the other without a pause.
        let pause = if reply.records.is_empty() {
            FOLLOW_INTERVAL
        } else {
            Duration::ZERO
        };
        tokio::select! {
            biased;
            () = &mut interrupted => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

// === impl FlowFilter ===

impl FlowFilter {
    /// Whether a record is about what happened to a flow that is asked for.
    fn takes(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<String>, has: &Option<String>| wanted.is_none() || wanted == has;
        matches!(entry.kind, Kind::FlowOpened | Kind::FlowMoved | Kind::Refused)
            && is(&self.tenant, &entry.tenant)
            && is(&self.service, &entry.service)
            && is(&self.backend, &entry.backend)
    }
}
