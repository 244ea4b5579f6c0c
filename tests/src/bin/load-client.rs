//! Sends requests at a steady rate and prints what became of them: see `enforcer_tests::client`.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use enforcer_tests::client::{LoadPlan, Mode, Summary, Target, run};
use tokio::signal::unix::{SignalKind, signal};

/// Sends chat completions at a steady rate and prints one JSON summary of what became of them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// http://ADDRESS:PORT[/PATH], by default with the path of chat completions
    target: Target,
    /// Source address of the connections
    #[arg(long)]
    bind: Option<IpAddr>,
    /// Requests a second; 0 keeps --concurrency requests under way all the time
    #[arg(long, default_value_t = 10.0)]
    rate: f64,
    /// Most requests under way at once
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Seconds during which requests are sent
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Stop sending after so many requests
    #[arg(long)]
    requests: Option<u64>,
    /// Answers token by token, or whole
    #[arg(long, value_enum, default_value = "short")]
    mode: Mode,
    /// Use a connection again for the next request
    #[arg(long)]
    keep_alive: bool,
    /// Tokens to ask for
    #[arg(long, default_value_t = 4)]
    max_tokens: u32,
    /// Milliseconds to wait for a connection; below 1000, one attempt is one SYN
    #[arg(long, default_value_t = 900)]
    connect_timeout_ms: u64,
    /// Milliseconds to wait for the next part of an answer
    #[arg(long, default_value_t = 5000)]
    idle_timeout_ms: u64,
    /// Milliseconds for one request in all
    #[arg(long, default_value_t = 30_000)]
    total_timeout_ms: u64,
    /// Also print one JSON line for every second as it ends
    #[arg(long)]
    interval_json: bool,
}

/// A day at most, so that the sum with a point in time cannot overflow.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds from 0 to 86400".into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match load(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load-client: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn load(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let plan = LoadPlan {
        bind: arguments.bind,
        requests_per_second: (arguments.rate != 0.0).then_some(arguments.rate),
        concurrency: arguments.concurrency,
        duration: Duration::from_secs_f64(arguments.duration),
        requests: arguments.requests,
        mode: arguments.mode,
        keep_alive: arguments.keep_alive,
        max_tokens: arguments.max_tokens,
        connect_timeout: Duration::from_millis(arguments.connect_timeout_ms),
        idle_timeout: Duration::from_millis(arguments.idle_timeout_ms),
        total_timeout: Duration::from_millis(arguments.total_timeout_ms),
        ..LoadPlan::new(arguments.target)
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let summary = run(plan, stop, |interval| {
        if arguments.interval_json {
            // A reader that went away is found out by the last line, which is the one that counts.
            let _ = print_line(interval);
        }
    })
    .await?;
    print_line(&summary)?;
    Ok(())
}

fn print_line(summary: &Summary) -> std::io::Result<()> {
    let line = serde_json::to_string(summary)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}
