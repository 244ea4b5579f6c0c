//! The control agent.

use enforcer_agent::{config::Config, daemon};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().init();
    let path = std::env::args_os()
        .nth(3)
        .ok_or("usage: enforcer-agent run --config FILE")?;
    let config = Config::load(path.as_ref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        daemon::run(config, async move {
            terminate.recv().await;
        })
        .await?;
        Ok(())
    })
}
