//! The programs' own log lines, where they were compiled in with the feature `kernel-log`: into the agent's log.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tracing::warn;

/// Between two looks at the programs' log: it is for debugging, nothing waits for it.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Starts a thread that hands the lines on for as long as the process lives.
pub(super) fn forward(ebpf: &mut Ebpf) {
    let mut logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => {
            warn!(%error, "the programs' log lines cannot be read");
            return;
        }
    };
    let thread = std::thread::Builder::new()
        .name("kernel-log".to_owned())
        .spawn(move || {
            loop {
                logger.flush();
                std::thread::sleep(FLUSH_INTERVAL);
            }
        });
    if let Err(error) = thread {
        warn!(%error, "no thread for the programs' log lines");
    }
}
