//! One simulated GPU server: see `enforcer_tests::simulator`.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use enforcer_tests::simulator::{Config, Simulator};
use tokio::signal::unix::{SignalKind, signal};

/// Answers OpenAI's chat completions as a GPU server would, without a GPU.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Address and port to listen on; may be given several times, port 0 takes a free one
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// Name of this back end, sent in the x-backend header
    #[arg(long, default_value = "simulator")]
    name: String,
    /// Model that it claims to serve
    #[arg(long, default_value = "llama-70b")]
    model: String,
    /// Requests that are decoded at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    slots: u32,
    /// Requests that may queue; one more is answered 429
    #[arg(long, default_value_t = 1024)]
    queue_limit: u32,
    /// Milliseconds for each token
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    token_ms: u64,
    /// Tokens for a request that does not say max_tokens
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tokens: u32,
    /// Tokens that the key-value cache holds
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    cache_tokens: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inference-simulator: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let simulator = Simulator::bind(Config {
        name: arguments.name,
        model: arguments.model,
        listen: arguments.listen,
        slots: arguments.slots,
        queue_limit: arguments.queue_limit,
        token_time: Duration::from_millis(arguments.token_ms),
        default_tokens: arguments.tokens,
        cache_tokens: arguments.cache_tokens,
    })?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let addresses: Vec<String> = simulator.addresses().iter().map(ToString::to_string).collect();
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening on {}", addresses.join(", "))?;
    stdout.flush()?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    simulator.serve(shutdown).await?;
    Ok(())
}
