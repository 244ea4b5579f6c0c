//! `capture`: has the agent show packets, and writes them to a file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enforcer_common::Reason;
use enforcer_common::abi::reason::Effect;

use super::arguments::{Capture, Format};
use super::commands::write;
use super::render::Render as _;
use super::{CliError, output};
use crate::adapters::capture::CaptureWriter;
use crate::api::client::Client;
use crate::api::reply::{CaptureBeginReply, CaptureEndReply, CaptureReadReply};
use crate::api::{CaptureOrder, Reply, Request};

/// Between two looks at what was captured: the ring buffer takes many times what comes meanwhile.
const READ_INTERVAL: Duration = Duration::from_millis(100);
/// What a capture holds is for its owner alone.
const FILE_MODE: u32 = 0o600;

/// Captures until there are as many packets as were asked for, time is up, or somebody interrupts it.
pub(super) async fn execute(command: Capture, socket: &Path, format: Format) -> Result<(), CliError> {
    let Capture {
        reason,
        tenant,
        service,
        count,
        seconds,
        snap,
        write: path,
    } = command;
    let to_standard_output = path.as_os_str() == "-";
    let reasons = if reason.is_empty() { all_refusals() } else { reason };
    let order = CaptureOrder {
        reasons: reasons
            .into_iter()
            .map(|reason| reason.name().to_owned())
            .collect(),
        tenant,
        service,
        count,
        seconds,
        snap_bytes: snap,
    };
    let mut client = Client::connect(socket).await?;
    let mut writer = CaptureWriter::new(destination(path)?, snap)?;
    let serial = match client.call(Request::CaptureBegin(order)).await? {
        Reply::CaptureBegin(CaptureBeginReply { serial, .. }) => serial,
        other => return Err(CliError::OtherReply(Box::new(other))),
    };
    let ended = follow(&mut client, serial, &mut writer).await?;
    if to_standard_output {
        output::note(&ended.render());
        return Ok(());
    }
    write(&ended, format)
}

/// Why a packet can be refused, whatever it is.
fn all_refusals() -> Vec<Reason> {
    let all = Reason::ALL.iter().copied();
    all.filter(|reason| reason.effect() == Effect::Refused).collect()
}

fn destination(path: PathBuf) -> Result<Box<dyn Write>, CliError> {
    if path.as_os_str() == "-" {
        let out = io::stdout();
        if out.is_terminal() {
            return Err(CliError::BinaryToTerminal);
        }
        return Ok(Box::new(BufWriter::new(out)));
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(FILE_MODE);
    match options.open(&path) {
        Ok(file) => Ok(Box::new(BufWriter::<File>::new(file))),
        Err(source) => Err(CliError::CaptureFile { path, source }),
    }
}

/// Writes what is captured; how it was in the end.
async fn follow(
    client: &mut Client,
    serial: u32,
    writer: &mut CaptureWriter<Box<dyn Write>>,
) -> Result<CaptureEndReply, CliError> {
    let interrupted = output::interrupted()?;
    tokio::pin!(interrupted);
    writer.flush()?;
    loop {
        let CaptureReadReply { packets, ended } = match client.call(Request::CaptureRead { serial }).await? {
            Reply::CaptureRead(reply) => reply,
            other => return Err(CliError::OtherReply(Box::new(other))),
        };
        let written = packets
            .iter()
            .try_for_each(|packet| writer.write(packet))
            .and_then(|()| writer.flush());
        if let Some(ended) = ended {
            written?;
            return Ok(ended);
        }
        if let Err(error) = written {
            // The agent need not wait until it notices that nobody reads.
            let _over = end(client, serial).await;
            return Err(error.into());
        }
        // Also where one reply follows the other without a pause.
        let pause = if packets.is_empty() {
            READ_INTERVAL
        } else {
            Duration::ZERO
        };
        tokio::select! {
            biased;
            () = &mut interrupted => return end(client, serial).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn end(client: &mut Client, serial: u32) -> Result<CaptureEndReply, CliError> {
    match client.call(Request::CaptureEnd { serial }).await? {
        Reply::CaptureEnd(reply) => Ok(reply),
        other => Err(CliError::OtherReply(Box::new(other))),
    }
}
