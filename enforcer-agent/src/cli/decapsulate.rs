//! `decapsulate`: the other end of `Ipip` and `Gue`, on a back end's host. It needs no agent there.

use serde::Serialize;

use super::CliError;
use super::arguments::{Decapsulate, Format};
use super::commands::write;
use super::render::{Render, clean};
use crate::adapters::dataplane::{Mode, decapsulate, stop_decapsulating};

/// What became of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    interface: String,
    /// `native`, `generic` or `adopted`; none if it was taken off.
    mode: Option<&'static str>,
}

impl Render for Report {
    fn render(&self) -> String {
        let interface = clean(&self.interface);
        match self.mode {
            Some(mode) => format!("{interface} takes outer headers off ({mode})\n"),
            None => format!("{interface} leaves packets as they are\n"),
        }
    }
}

/// Attaches the program, or takes it off.
pub(super) fn execute(command: Decapsulate, format: Format) -> Result<(), CliError> {
    let Decapsulate {
        interface,
        ipv4,
        ipv6,
        remove,
        pin_directory,
    } = command;
    let directory = pin_directory.as_deref();
    let mode = if remove {
        stop_decapsulating(&interface, directory)?;
        None
    } else {
        Some(match decapsulate(&interface, ipv4, ipv6, directory)? {
            Mode::Native => "native",
            Mode::Generic { .. } => "generic",
            Mode::Tc { .. } => "tc",
            Mode::Adopted => "adopted",
        })
    };
    write(&Report { interface, mode }, format)
}
