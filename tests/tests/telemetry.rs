//! Telemetry end to end on loopback: recorded metric texts over real HTTP, health checks against servers that behave
//! and misbehave, and NVML through a stand-in for NVIDIA's library.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use enforcer_agent::adapters::http::{HttpError, HttpLimits, HttpStage, HttpTarget, get};
use enforcer_agent::adapters::nvml::{NvmlAbsence, NvmlState, start_with};
use enforcer_agent::adapters::probe::{ProbeFailure, ProbeResult, ProbeTarget, probe};
use enforcer_agent::adapters::prometheus::{ScrapeError, ScrapeLimits, scrape_engine, scrape_gpu};
use enforcer_agent::pure::telemetry::{
    Brakes, EngineKind, EngineSample, GpuSample, TelemetryError, TextError, TextLimits, parse_engine,
    parse_gpu,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

fn data(folder: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(folder)
        .join(name)
}

fn metrics(name: &str) -> Vec<u8> {
    std::fs::read(data("metrics", name)).unwrap()
}

#[track_caller]
fn check_engine(name: &str, engine: EngineKind, expected: [Option<f64>; 4]) {
    let [running, waiting, kv_cache_ratio, gpu_utilization_ratio] = expected;
    let expected = EngineSample {
        engine,
        running,
        waiting,
        kv_cache_ratio,
        gpu_utilization_ratio,
    };
    assert_eq!(
        parse_engine(&metrics(name), &TextLimits::default()),
        Ok(expected),
        "{name}"
    );
}

#[test]
fn every_engine_is_read_in_its_own_names_and_units() {
    check_engine(
        "vllm.txt",
        EngineKind::Vllm,
        [Some(43.0), Some(12.0), Some(0.5), None],
    );
    let cache = Some(0.006_451_612_903_225_823);
    check_engine(
        "vllm-older.txt",
        EngineKind::Vllm,
        [Some(2.0), Some(0.0), cache, None],
    );
    check_engine(
        "sglang.txt",
        EngineKind::SgLang,
        [Some(48.0), Some(11.0), Some(0.62), None],
    );
    let triton = [Some(32.0), Some(6.0), Some(0.4875), Some(0.93)];
    check_engine("triton-tensorrt-llm.txt", EngineKind::Triton, triton);
    check_engine(
        "triton.txt",
        EngineKind::Triton,
        [None, Some(6.0), None, Some(0.375)],
    );
}

#[track_caller]
fn check_gpu(name: &str, expected: GpuSample) {
    assert_eq!(
        parse_gpu(&metrics(name), &TextLimits::default()),
        Ok(expected),
        "{name}"
    );
}

#[test]
fn every_state_of_a_gpu_is_read_from_dcgm() {
    let none = Brakes::default();
    check_gpu(
        "dcgm-h100.txt",
        GpuSample {
            devices: 2,
            utilization_ratio: Some(0.75),
            memory_ratio: Some(0.5),
            temperature_celsius: Some(88.0),
            xid: Some(31),
            row_remap_failed: Some(false),
            brakes: Some(Brakes {
                thermal: true,
                ..none
            }),
            thermal_violation: Some(1_250_000.0),
        },
    );
    check_gpu(
        "dcgm-mig.txt",
        GpuSample {
            devices: 1,
            utilization_ratio: Some(1.2 / 3.0),
            memory_ratio: Some(20_000.0 / 70_000.0),
            temperature_celsius: Some(41.0),
            xid: Some(0),
            ..GpuSample::default()
        },
    );
    check_gpu(
        "dcgm-unavailable.txt",
        GpuSample {
            devices: 1,
            temperature_celsius: Some(38.0),
            ..GpuSample::default()
        },
    );
    check_gpu(
        "dcgm-broken.txt",
        GpuSample {
            devices: 2,
            utilization_ratio: Some(0.06),
            xid: Some(79),
            row_remap_failed: Some(true),
            brakes: Some(Brakes { power: true, ..none }),
            ..GpuSample::default()
        },
    );
}

#[test]
fn another_exporter_is_neither_engine_nor_gpu() {
    let body = metrics("node-exporter.txt");
    assert_eq!(
        parse_engine(&body, &TextLimits::default()),
        Err(TelemetryError::NoEngineMetric)
    );
    assert_eq!(
        parse_gpu(&body, &TextLimits::default()),
        Err(TelemetryError::NoGpuMetric)
    );
    assert_eq!(
        parse_gpu(&metrics("vllm.txt"), &TextLimits::default()),
        Err(TelemetryError::NoGpuMetric)
    );
}

/// No prefix of a text makes the readers panic. (That a body was cut off, HTTP notices: a number that lost its last
/// digits is still a number.)
#[test]
fn texts_that_are_cut_off_are_harmless() {
    for name in [
        "vllm.txt",
        "sglang.txt",
        "triton-tensorrt-llm.txt",
        "dcgm-h100.txt",
        "dcgm-mig.txt",
    ] {
        let body = metrics(name);
        for end in (0..body.len()).step_by(3) {
            let _ = parse_engine(&body[..end], &TextLimits::default());
            let _ = parse_gpu(&body[..end], &TextLimits::default());
        }
    }
}

/// A server on loopback that hands every connection to `serve`.
struct Server {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start<S, F>(serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }

    /// Reads the request, sends `parts` one after the other, and closes.
    async fn sending(parts: Vec<Vec<u8>>) -> Self {
        Self::start(move |stream| send(stream, parts.clone(), false)).await
    }

    /// As [`Self::sending`], but keeps the connection open at the end.
    async fn stalling_after(parts: Vec<Vec<u8>>) -> Self {
        Self::start(move |stream| send(stream, parts.clone(), true)).await
    }

    fn target(&self) -> HttpTarget {
        HttpTarget::on_back_end(self.address, "/metrics").unwrap()
    }
}

async fn send(mut stream: TcpStream, parts: Vec<Vec<u8>>, stall: bool) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    assert!(
        request.starts_with(b"GET /"),
        "{}",
        String::from_utf8_lossy(&request)
    );
    for part in parts {
        if stream.write_all(&part).await.is_err() {
            return;
        }
    }
    if stall {
        // Until the client gives up.
        let _ = stream.read(&mut [0]).await;
    }
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<Vec<u8>> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    vec![head.into_bytes(), body.to_vec()]
}

fn limits(timeout_ms: u64, body_bytes: usize) -> HttpLimits {
    HttpLimits {
        timeout: Duration::from_millis(timeout_ms),
        body_bytes,
    }
}

#[tokio::test]
async fn a_scrape_brings_the_sample() {
    let server = Server::sending(answer("200 OK", "", &metrics("vllm.txt"))).await;
    let sample = scrape_engine(&server.target(), &ScrapeLimits::default())
        .await
        .unwrap();
    assert_eq!((sample.engine, sample.waiting), (EngineKind::Vllm, Some(12.0)));

    let server = Server::sending(answer("200 OK", "", &metrics("dcgm-broken.txt"))).await;
    let sample = scrape_gpu(&server.target(), &ScrapeLimits::default())
        .await
        .unwrap();
    assert_eq!((sample.devices, sample.xid), (2, Some(79)));
}

#[tokio::test]
async fn a_chunked_answer_in_small_pieces_is_put_together() {
    let mut parts = vec![b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()];
    for piece in metrics("sglang.txt").chunks(100) {
        parts.push(format!("{:x}\r\n", piece.len()).into_bytes());
        parts.push([piece, b"\r\n"].concat());
    }
    parts.push(b"0\r\n\r\n".to_vec());
    let server = Server::sending(parts).await;
    let sample = scrape_engine(&server.target(), &ScrapeLimits::default())
        .await
        .unwrap();
    assert_eq!(sample.running, Some(48.0));
}

#[tokio::test]
async fn an_answer_that_is_not_the_metrics_is_a_miss() {
    let server = Server::sending(answer("503 Service Unavailable", "", b"starting")).await;
    let error = scrape_engine(&server.target(), &ScrapeLimits::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ScrapeError::Status { status: 503 }), "{error}");

    // A redirect is not followed, wherever it leads.
    let location = "Location: http://127.0.0.1:1/\r\n";
    let server = Server::sending(answer("302 Found", location, b"")).await;
    let error = scrape_engine(&server.target(), &ScrapeLimits::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ScrapeError::Status { status: 302 }), "{error}");

    let server = Server::sending(answer("200 OK", "", b"vllm:num_requests_waiting many\n")).await;
    let error = scrape_engine(&server.target(), &ScrapeLimits::default())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ScrapeError::Telemetry(TelemetryError::Text(TextError::Malformed { .. }))
        ),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_cut_off() {
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    let endless = std::iter::once(head)
        .chain(std::iter::repeat_n(vec![b'#'; 64 << 10], 1000))
        .collect();
    let server = Server::sending(endless).await;
    let error = get(&server.target(), &limits(5000, 1 << 20)).await.unwrap_err();
    assert!(
        matches!(
            error,
            HttpError::BodyTooLarge {
                limit_bytes: 1_048_576
            }
        ),
        "{error}"
    );

    let endless_head = std::iter::once(b"HTTP/1.1 200 OK\r\nX: ".to_vec())
        .chain(std::iter::repeat_n(vec![b'x'; 64 << 10], 1000))
        .collect();
    let server = Server::sending(endless_head).await;
    let error = get(&server.target(), &limits(5000, 1 << 20)).await.unwrap_err();
    assert!(
        matches!(
            error,
            HttpError::Protocol {
                stage: HttpStage::Head,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_sample() {
    let mut parts = answer("200 OK", "", &metrics("vllm.txt"));
    parts[1].truncate(1500);
    let server = Server::sending(parts).await;
    let error = get(&server.target(), &limits(5000, 1 << 20)).await.unwrap_err();
    assert!(
        matches!(
            error,
            HttpError::Protocol {
                stage: HttpStage::Body,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    let server = Server::sending(answer("200 OK", "Content-Encoding: gzip\r\n", b"\x1f\x8b")).await;
    let error = get(&server.target(), &limits(5000, 1 << 20)).await.unwrap_err();
    assert!(matches!(error, HttpError::Encoded { .. }), "{error}");
}

#[track_caller]
fn check_timeout(error: &HttpError, expected: HttpStage, started: Instant) {
    assert!(
        matches!(error, HttpError::Timeout { stage, .. } if *stage == expected),
        "{error}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_server_that_stalls_costs_the_timeout_and_no_more() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec();
    for (parts, stage) in [(vec![], HttpStage::Head), (vec![head], HttpStage::Body)] {
        let server = Server::stalling_after(parts).await;
        let started = Instant::now();
        let error = get(&server.target(), &limits(200, 1 << 20)).await.unwrap_err();
        check_timeout(&error, stage, started);
    }
}

#[tokio::test]
async fn a_connection_that_is_never_accepted_times_out() {
    // A listener with its backlog full: further handshakes wait for ever.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        held.push(stream);
        assert!(held.len() < 100, "the backlog has no end");
    }
    let started = Instant::now();
    let target = HttpTarget::on_back_end(address, "/").unwrap();
    let error = get(&target, &limits(200, 1 << 20)).await.unwrap_err();
    check_timeout(&error, HttpStage::Connect, started);
    let limit = Duration::from_millis(200);
    let expected = ProbeResult::Failed(ProbeFailure::Timeout {
        stage: HttpStage::Connect,
        limit,
    });
    assert_eq!(probe(&ProbeTarget::Tcp(address), limit).await, expected);
}

#[tokio::test]
async fn a_host_that_is_not_known_is_named() {
    let target = HttpTarget::parse("http://no-such-host.invalid/metrics").unwrap();
    let error = get(&target, &limits(5000, 1 << 20)).await.unwrap_err();
    let is_named = matches!(&error, HttpError::UnknownHost { host, .. } if host == "no-such-host.invalid");
    // Without a resolver at all, the look-up may take longer than anyone waits.
    assert!(
        is_named
            || matches!(
                error,
                HttpError::Timeout {
                    stage: HttpStage::Connect,
                    ..
                }
            ),
        "{error}"
    );
}

const SOON: Duration = Duration::from_secs(5);

async fn probe_http(server: &Server) -> ProbeResult {
    probe(&ProbeTarget::http(server.address, "/health").unwrap(), SOON).await
}

#[tokio::test]
async fn health_checks_pass_for_a_server_that_is_well() {
    for body in [&b""[..], b"ok"] {
        let server = Server::sending(answer("200 OK", "", body)).await;
        assert!(probe_http(&server).await.passed());
        assert!(probe(&ProbeTarget::Tcp(server.address), SOON).await.passed());
    }
    let server = Server::sending(vec![b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()]).await;
    assert!(probe_http(&server).await.passed());
}

#[tokio::test]
async fn health_checks_fail_with_the_reason() {
    for (status, code) in [
        ("503 Service Unavailable", 503),
        ("301 Moved Permanently", 301),
        ("404 Not Found", 404),
    ] {
        let server = Server::sending(answer(status, "", b"")).await;
        assert_eq!(
            probe_http(&server).await,
            ProbeResult::Failed(ProbeFailure::Status { status: code })
        );
    }

    let server = Server::sending(vec![b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()]).await;
    let result = probe_http(&server).await;
    assert!(
        matches!(result, ProbeResult::Failed(ProbeFailure::BadAnswer { .. })),
        "{result}"
    );
    assert!(
        probe(&ProbeTarget::Tcp(server.address), SOON).await.passed(),
        "TCP asks for no more than a handshake"
    );

    let server = Server::sending(vec![]).await;
    let result = probe_http(&server).await;
    assert!(
        matches!(result, ProbeResult::Failed(ProbeFailure::BadAnswer { .. })),
        "{result}"
    );

    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let refused = ProbeResult::Failed(ProbeFailure::Refused);
    assert_eq!(probe(&ProbeTarget::Tcp(address), SOON).await, refused);
    assert_eq!(
        probe(&ProbeTarget::http(address, "/health").unwrap(), SOON).await,
        refused
    );
}

#[tokio::test]
async fn a_health_check_that_hangs_is_a_failure_after_its_timeout() {
    let server = Server::stalling_after(vec![]).await;
    let limit = Duration::from_millis(200);
    let result = probe(&ProbeTarget::http(server.address, "/health").unwrap(), limit).await;
    assert_eq!(
        result,
        ProbeResult::Failed(ProbeFailure::Timeout {
            stage: HttpStage::Head,
            limit
        })
    );
    assert_eq!(
        result.to_string(),
        "failed: no end within 200 ms, while waiting for the answer"
    );
}

/// Builds the stand-in for NVIDIA's library. The compiler is the one that links every Rust program.
fn stand_in(folder: &Path, flag: &str) -> PathBuf {
    let library = folder.join(format!("libstand-in{flag}.so"));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", flag, "-o"])
        .args([&library, &data("nvml", "stand_in.c")])
        .status()
        .expect("cc, which also links Rust programs, must be on PATH");
    assert!(status.success());
    library
}

#[tokio::test]
async fn nvml_tells_what_each_gpu_supports_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let library = stand_in(folder.path(), "-DWITH_GPUS");
    let NvmlState::Present(mut monitor) = start_with(Some(library.as_os_str()), Duration::from_millis(20))
    else {
        panic!("the stand-in has GPUs");
    };
    let first = monitor.next().await.unwrap();
    let expected = GpuSample {
        devices: 3,
        utilization_ratio: Some(0.37),
        memory_ratio: Some(0.5),
        temperature_celsius: Some(91.0),
        // One GPU told 48 and another is lost, which is 79: of two faults the smaller code is shown.
        xid: Some(48),
        row_remap_failed: Some(false),
        brakes: Some(Brakes {
            thermal: true,
            ..Brakes::default()
        }),
        thermal_violation: None,
    };
    assert_eq!(first.sample, expected);
    // The event came once; the last XID stays.
    let later = monitor.next().await.unwrap();
    assert!(later.number > first.number);
    assert_eq!(later.sample, expected);
    assert!(
        monitor
            .latest()
            .is_some_and(|latest| latest.number >= later.number)
    );
}

#[test]
fn the_absence_of_nvml_is_a_state_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let check = |library: &Path, expected: fn(&NvmlAbsence) -> bool| match start_with(
        Some(library.as_os_str()),
        Duration::from_secs(1),
    ) {
        NvmlState::Absent { reason } if expected(&reason) => {}
        state => panic!("{}: {state:?}", library.display()),
    };
    check(Path::new("/no/such/libnvidia-ml.so.1"), |reason| {
        matches!(reason, NvmlAbsence::NoLibrary)
    });
    check(&stand_in(folder.path(), "-DWITHOUT_DRIVER"), |reason| {
        matches!(reason, NvmlAbsence::NoDriver)
    });
    check(&stand_in(folder.path(), "-DWITHOUT_GPU"), |reason| {
        matches!(reason, NvmlAbsence::NoGpu)
    });
}
