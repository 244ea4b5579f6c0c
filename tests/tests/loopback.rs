//! The simulator and the load client against each other, over loopback.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::future::pending;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use enforcer_tests::client::{LoadPlan, Mode, Summary, Target, run};
use enforcer_tests::simulator::{BODY_LIMIT_BYTES, Config, Simulator};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const LOOPBACK: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn config() -> Config {
    Config {
        name: "gpu-1".into(),
        listen: vec![LOOPBACK[0].parse().unwrap()],
        token_time: Duration::from_millis(5),
        ..Config::default()
    }
}

/// Serves until the test's runtime ends.
fn start(config: Config) -> Vec<SocketAddr> {
    let simulator = Simulator::bind(config).unwrap();
    let addresses = simulator.addresses();
    tokio::spawn(simulator.serve(pending()));
    addresses
}

fn plan(address: SocketAddr) -> LoadPlan {
    LoadPlan {
        requests_per_second: Some(200.0),
        requests: Some(20),
        duration: Duration::from_secs(20),
        ..LoadPlan::new(Target::chat(address))
    }
}

async fn load(plan: LoadPlan) -> Summary {
    run(plan, pending(), |_| ()).await.unwrap()
}

/// One request on a connection of its own.
async fn call(address: SocketAddr, method: &str, path: &str, body: &str) -> (StatusCode, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driver = tokio::spawn(driver);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn metric(address: SocketAddr, path: &str, name: &str) -> f64 {
    let (status, text) = call(address, "GET", path, "").await;
    assert_eq!(status, StatusCode::OK);
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")))
        .unwrap();
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Asks for a metric until it has the value; what changes it is on its way already.
async fn await_metric(address: SocketAddr, name: &str, value: f64) {
    let reached = async { while metric(address, "/metrics", name).await != value {} };
    tokio::time::timeout(Duration::from_secs(10), reached)
        .await
        .unwrap_or_else(|_| panic!("{name} is not {value}"));
}

#[tokio::test]
async fn one_slot_serves_one_request_after_the_other() {
    let [address] = start(Config { slots: 1, ..config() })[..] else {
        panic!("one address")
    };
    let chat = r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}"#;
    let started = Instant::now();
    let both = async {
        tokio::join!(
            call(address, "POST", "/v1/chat/completions", chat),
            call(address, "POST", "/v1/chat/completions", chat)
        )
    };
    let queue = async {
        await_metric(address, "vllm:num_requests_waiting", 1.0).await;
        metric(address, "/metrics", "vllm:num_requests_running").await
    };
    let ((first, second), running) = tokio::join!(both, queue);
    assert_eq!(running, 1.0);
    assert_eq!((first.0, second.0), (StatusCode::OK, StatusCode::OK));
    // Twice a hundred tokens of 5 ms: side by side they would take 500 ms.
    assert!(
        started.elapsed() >= Duration::from_millis(1000),
        "took only {:?}",
        started.elapsed()
    );
    await_metric(address, "vllm:num_requests_running", 0.0).await;
    assert_eq!(metric(address, "/metrics", "vllm:kv_cache_usage_perc").await, 0.0);
    assert_eq!(
        metric(address, "/metrics", "vllm:generation_tokens_total").await,
        200.0
    );
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_slot() {
    let [address] = start(Config { slots: 1, ..config() })[..] else {
        panic!("one address")
    };
    let body = r#"{"messages": [{"role": "user"}], "stream": true, "max_tokens": 100000}"#;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 64]).await.unwrap();
    assert_eq!(
        metric(address, "/metrics", "vllm:num_requests_running").await,
        1.0
    );
    drop(stream);
    await_metric(address, "vllm:num_requests_running", 0.0).await;
    assert_eq!(
        load(LoadPlan {
            requests: Some(1),
            ..plan(address)
        })
        .await
        .ok,
        1
    );
}

#[tokio::test]
async fn both_families_and_both_modes_are_served_and_counted() {
    let listen = LOOPBACK.map(|address| address.parse().unwrap()).to_vec();
    for address in start(Config { listen, ..config() }) {
        for mode in [Mode::Stream, Mode::Short] {
            for keep_alive in [false, true] {
                let summary = load(LoadPlan {
                    mode,
                    keep_alive,
                    ..plan(address)
                })
                .await;
                assert_eq!(
                    (summary.attempted, summary.ok),
                    (20, 20),
                    "{address} {mode:?} {keep_alive}: {summary:?}"
                );
                assert_eq!(summary.back_ends["gpu-1"], 20);
                // Streamed, the first byte comes with the first of four tokens; whole, with the last.
                let tokens = if mode == Mode::Stream { 1.0 } else { 4.0 };
                let p50_ms = summary.latency_ms.p50.unwrap();
                assert!(
                    p50_ms >= tokens * 5.0,
                    "first byte after {p50_ms} ms of {tokens} tokens"
                );
                assert!(summary.bytes > 20 * 100);
            }
        }
    }
}

#[tokio::test]
async fn a_streamed_answer_has_one_event_for_each_token_and_ends_with_done() {
    let [address] = start(config())[..] else {
        panic!("one address")
    };
    let body = r#"{"messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 3}"#;
    let (status, text) = call(address, "POST", "/v1/chat/completions", body).await;
    assert_eq!(status, StatusCode::OK);
    let events: Vec<&str> = text
        .split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect();
    assert_eq!(events.len(), 4);
    assert_eq!(events[3], "[DONE]");
    let last: Value = serde_json::from_str(events[2]).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["system_fingerprint"], "gpu-1");
}

#[tokio::test]
async fn bad_requests_are_refused_and_take_no_slot() {
    let [address] = start(config())[..] else {
        panic!("one address")
    };
    let too_large = format!(
        r#"{{"messages": [{{"content": "{}"}}]}}"#,
        "x".repeat(BODY_LIMIT_BYTES)
    );
    for (body, status) in [
        ("{", StatusCode::BAD_REQUEST),
        (r#"{"messages": 1}"#, StatusCode::UNPROCESSABLE_ENTITY),
        (r#"{"messages": []}"#, StatusCode::BAD_REQUEST),
        (
            r#"{"messages": [{"content": "hi"}], "max_tokens": 0}"#,
            StatusCode::BAD_REQUEST,
        ),
        (
            r#"{"messages": [{"content": "hi"}], "max_tokens": 100001}"#,
            StatusCode::BAD_REQUEST,
        ),
        (too_large.as_str(), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let (found, answer) = call(address, "POST", "/v1/chat/completions", body).await;
        assert_eq!(found, status, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"]["message"].is_string());
    }
    assert_eq!(
        metric(address, "/metrics", "vllm:generation_tokens_total").await,
        0.0
    );
}

#[tokio::test]
async fn a_full_queue_answers_at_once() {
    let config = Config {
        slots: 1,
        queue_limit: 1,
        ..config()
    };
    let [address] = start(config)[..] else {
        panic!("one address")
    };
    let plan = LoadPlan {
        requests: Some(3),
        requests_per_second: Some(1000.0),
        max_tokens: 50,
        ..plan(address)
    };
    let summary = load(plan).await;
    assert_eq!((summary.ok, summary.http_errors), (2, 1), "{summary:?}");
}

#[tokio::test]
async fn reported_saturation_changes_the_metrics_and_nothing_else() {
    let [address] = start(config())[..] else {
        panic!("one address")
    };
    let saturation = r#"{"running": 8, "waiting": 40, "kv_cache": 0.97, "gpu_utilization": 100, "xid": 79}"#;
    assert_eq!(
        call(address, "POST", "/admin/saturate", saturation).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        metric(address, "/metrics", "vllm:num_requests_waiting").await,
        40.0
    );
    assert_eq!(
        metric(address, "/metrics", "vllm:kv_cache_usage_perc").await,
        0.97
    );
    assert_eq!(
        metric(address, "/dcgm/metrics", "DCGM_FI_DEV_GPU_UTIL").await,
        100.0
    );
    assert_eq!(
        metric(address, "/dcgm/metrics", "DCGM_FI_DEV_XID_ERRORS").await,
        79.0
    );
    assert_eq!(load(plan(address)).await.ok, 20);
    assert_eq!(
        call(address, "POST", "/admin/saturate", r#"{"runing": 8}"#)
            .await
            .0,
        StatusCode::UNPROCESSABLE_ENTITY
    );
    assert_eq!(
        call(address, "POST", "/admin/clear", "").await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        metric(address, "/metrics", "vllm:num_requests_waiting").await,
        0.0
    );
}

/// What a server does to a connection it has accepted.
#[derive(Clone, Copy)]
enum Misbehaviour {
    Close,
    Silence,
    HalfAnswer,
    NotHttp,
}

/// Serves until the test's runtime ends.
async fn misbehaving(how: Misbehaviour) -> SocketAddr {
    let listener = TcpListener::bind(LOOPBACK[0]).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 2048]).await.unwrap();
            match how {
                Misbehaviour::Close => continue,
                Misbehaviour::Silence => {}
                Misbehaviour::HalfAnswer => {
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                        .await
                        .unwrap();
                }
                Misbehaviour::NotHttp => stream.write_all(b"SSH-2.0-no\r\n").await.unwrap(),
            }
            open.push(stream);
        }
    });
    address
}

#[tokio::test]
async fn every_way_to_fail_has_its_own_count() {
    let closed_port = TcpListener::bind(LOOPBACK[0])
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let limits = |address| LoadPlan {
        requests: Some(3),
        idle_timeout: Duration::from_millis(100),
        ..plan(address)
    };
    assert_eq!(load(limits(closed_port)).await.refused, 3);
    assert_eq!(
        load(limits(misbehaving(Misbehaviour::Close).await)).await.resets,
        3
    );
    assert_eq!(
        load(limits(misbehaving(Misbehaviour::Silence).await))
            .await
            .response_timeouts,
        3
    );
    let halves = load(limits(misbehaving(Misbehaviour::HalfAnswer).await)).await;
    assert_eq!((halves.stalled, halves.bytes), (3, 12));
    assert_eq!(halves.back_ends["(unnamed)"], 3);
    assert_eq!(
        load(limits(misbehaving(Misbehaviour::NotHttp).await))
            .await
            .other_errors,
        3
    );
}

#[tokio::test]
async fn requests_beyond_the_concurrency_are_counted_not_delayed() {
    let address = misbehaving(Misbehaviour::Silence).await;
    let plan = LoadPlan {
        concurrency: 4,
        requests: Some(10),
        idle_timeout: Duration::from_secs(1),
        ..plan(address)
    };
    let summary = load(plan).await;
    assert_eq!(
        (summary.attempted, summary.response_timeouts, summary.not_sent),
        (10, 4, 6)
    );
}

#[tokio::test]
async fn a_stopped_run_accounts_for_what_was_under_way() {
    let address = misbehaving(Misbehaviour::Silence).await;
    let mut seconds = Vec::new();
    let (second_over, is_over) = tokio::sync::oneshot::channel();
    let mut second_over = Some(second_over);
    let plan = LoadPlan {
        requests: Some(5),
        ..plan(address)
    };
    let stop = async { is_over.await.unwrap() };
    let summary = run(plan, stop, |interval| {
        seconds.push(interval.clone());
        if let Some(second_over) = second_over.take() {
            second_over.send(()).unwrap();
        }
    })
    .await
    .unwrap();
    assert_eq!((summary.attempted, summary.unfinished), (5, 5));
    assert_eq!(seconds[0].attempted, 5);
    assert!(seconds[0].seconds >= 0.9);
}

#[tokio::test]
async fn a_closed_loop_keeps_its_concurrency_busy() {
    let [address] = start(Config { slots: 4, ..config() })[..] else {
        panic!("one address")
    };
    let plan = LoadPlan {
        requests_per_second: None,
        concurrency: 4,
        requests: Some(40),
        keep_alive: true,
        ..plan(address)
    };
    let summary = load(plan).await;
    assert_eq!((summary.ok, summary.not_sent), (40, 0));
}

#[test]
fn the_binaries_work_together_and_end_on_sigterm() {
    let mut simulator = Command::new(env!("CARGO_BIN_EXE_inference-simulator"))
        .args([
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "[::1]:0",
            "--name",
            "gpu-7",
            "--token-ms",
            "2",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(simulator.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    let addresses = ready.trim_end().strip_prefix("listening on ").unwrap();
    let address = addresses.split(", ").next().unwrap();
    let client = Command::new(env!("CARGO_BIN_EXE_load-client"))
        .arg(format!("http://{address}"))
        .args([
            "--bind",
            "127.0.0.1",
            "--rate",
            "100",
            "--duration",
            "1.2",
            "--interval-json",
            "--mode",
            "stream",
        ])
        .output()
        .unwrap();
    let terminated = Command::new("kill")
        .arg(simulator.id().to_string())
        .status()
        .unwrap();
    assert!(simulator.wait().unwrap().success());
    assert!(terminated.success());
    assert!(
        client.status.success(),
        "{}",
        String::from_utf8_lossy(&client.stderr)
    );
    let lines: Vec<Summary> = String::from_utf8(client.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let summary = lines.last().unwrap();
    assert!(lines.len() >= 2, "one line for the second, one for the sum");
    assert_eq!(summary.ok, summary.attempted);
    assert_eq!(summary.back_ends["gpu-7"], summary.ok);
    assert!((1..=121).contains(&summary.ok), "{summary:?}");
}

#[test]
fn the_binaries_explain_wrong_arguments() {
    for (program, arguments, reason) in [
        (
            env!("CARGO_BIN_EXE_load-client"),
            vec!["http://gpu-1:8000"],
            "with an address in digits",
        ),
        (
            env!("CARGO_BIN_EXE_load-client"),
            vec!["http://127.0.0.1", "--bind", "::1"],
            "both have to be IPv4",
        ),
        (
            env!("CARGO_BIN_EXE_inference-simulator"),
            vec!["--listen", "192.0.2.1:1"],
            "cannot listen on 192.0.2.1:1",
        ),
        (env!("CARGO_BIN_EXE_inference-simulator"), vec![], "--listen"),
    ] {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(!output.status.success());
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(reason), "{message}");
    }
}
