//! Server and client over a real socket; the daemon's loop is a task that answers by name.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::client::{Client, ClientError};
use super::reply::{ChangeReply, MetricsReply};
use super::server::{ControlListener, Incoming, ListenError, serve};
use super::*;

struct Daemon {
    directory: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let listener = ControlListener::bind(&directory.path().join("control.sock"), None).unwrap();
        let (requests, incoming) = mpsc::channel(8);
        tokio::spawn(answer_all(incoming));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, requests, async {
            let _dropped = stopped.await;
        }));
        Self {
            directory,
            stop,
            server,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
        assert!(
            !self.directory.path().join("control.sock").exists(),
            "the socket is removed"
        );
    }
}

async fn answer_all(mut incoming: mpsc::Receiver<Incoming>) {
    while let Some(Incoming {
        request,
        actor,
        answer,
    }) = incoming.recv().await
    {
        let outcome = match request {
            Request::TenantSuspend { name } if name == "acme" => Ok(Reply::TenantSuspend(ChangeReply {
                name: actor.to_string(),
                changed: true,
                generation: 7,
            })),
            Request::TenantSuspend { name } => Err(ApiError::new(
                ErrorCode::NotFound,
                format!("there is no tenant `{name}`"),
            )
            .with("nearest", "acme")),
            Request::Metrics => Ok(Reply::Metrics(MetricsReply {
                text: "x".repeat(MAX_FRAME_BYTES),
            })),
            Request::PolicyApply { sources, .. } => Err(ApiError::new(
                ErrorCode::Refused,
                sources[0].text.len().to_string(),
            )),
            // Dropped without an answer, as by a bug.
            _ => continue,
        };
        let _gone = answer.send(outcome);
    }
}

async fn refusal(client: &mut Client, request: Request) -> ApiError {
    match client.call(request).await {
        Err(ClientError::Refused(error)) => error,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Sends bytes as they are and returns what comes back until the server closes or one frame is whole.
async fn raw(socket: &Path, bytes: &[u8]) -> ApiError {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let length = stream.read_u32().await.unwrap();
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await.unwrap();
    match serde_json::from_slice::<ReplyFrame>(&frame).unwrap().outcome {
        Outcome::Error(error) => error,
        Outcome::Ok(reply) => panic!("expected an error, got {reply:?}"),
    }
}

fn with_length(json: &str) -> Vec<u8> {
    [
        &u32::try_from(json.len()).unwrap().to_be_bytes()[..],
        json.as_bytes(),
    ]
    .concat()
}

#[tokio::test]
async fn requests_reach_the_loop_with_their_actor_and_answers_come_back() {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket()).await.unwrap();
    let own = format!(
        "uid {} (pid {})",
        rustix::process::getuid().as_raw(),
        std::process::id()
    );
    for _ in 0..3 {
        let reply = client
            .call(Request::TenantSuspend { name: "acme".into() })
            .await
            .unwrap();
        let expected = ChangeReply {
            name: own.clone(),
            changed: true,
            generation: 7,
        };
        assert_eq!(reply, Reply::TenantSuspend(expected));
    }
    let missing = refusal(&mut client, Request::TenantSuspend { name: "acne".into() }).await;
    assert_eq!(missing.code, ErrorCode::NotFound);
    assert_eq!(missing.details["nearest"], "acme");
    // An answer that never came does not end the connection.
    assert_eq!(
        refusal(&mut client, Request::Status).await.code,
        ErrorCode::Internal
    );
    assert_eq!(
        refusal(&mut client, Request::Metrics).await.code,
        ErrorCode::Refused,
        "with what is around it, it is no frame"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn the_largest_policy_passes() {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket()).await.unwrap();
    // A control character is six bytes of JSON.
    let apply = |bytes: usize| Request::PolicyApply {
        sources: (0..MAX_SOURCES)
            .map(|_| {
                let text = "\u{1}".repeat(bytes / MAX_SOURCES);
                PolicySource::new("\u{1}".repeat(MAX_PATH_BYTES), text)
            })
            .collect(),
        dry_run: false,
    };
    assert_eq!(
        refusal(&mut client, apply(MAX_TEXT_BYTES)).await.message,
        (MAX_TEXT_BYTES / MAX_SOURCES).to_string()
    );
    assert!(matches!(
        client.call(apply(MAX_TEXT_BYTES + (64 << 10))).await,
        Err(ClientError::TooLarge { .. })
    ));
    daemon.stop().await;
}

#[tokio::test]
async fn hostile_frames_get_an_error_and_the_server_goes_on() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    let cases = [
        (
            with_length("{\"version\":2,\"request\":{\"do\":\"fly\"}}"),
            ErrorCode::Malformed,
        ),
        (
            with_length("{\"version\":2,\"request\":{\"do\":\"tenantResume\",\"name\":\"a\",\"extra\":1}}"),
            ErrorCode::Malformed,
        ),
        (
            with_length("{\"version\":2,\"request\":{\"do\":\"mapsDump\"}}"),
            ErrorCode::Malformed,
        ),
        (with_length("not json"), ErrorCode::Malformed),
        (with_length(""), ErrorCode::Malformed),
        (with_length(&"[".repeat(50_000)), ErrorCode::Malformed),
        (
            with_length("{\"version\":1,\"request\":{\"do\":\"fly\"}}"),
            ErrorCode::Version,
        ),
        (u32::MAX.to_be_bytes().to_vec(), ErrorCode::Malformed),
    ];
    for (bytes, code) in cases {
        let error = raw(&socket, &bytes).await;
        assert_eq!(error.code, code, "{error:?}");
    }
    let mut half = UnixStream::connect(&socket).await.unwrap();
    half.write_all(&[0, 0]).await.unwrap();
    drop(half);
    let mut client = Client::connect(&socket).await.unwrap();
    assert!(
        client
            .call(Request::TenantSuspend { name: "acme".into() })
            .await
            .is_ok()
    );
    daemon.stop().await;
}

/// Speaks to the socket from a thread that has become another user; the kernel then vouches for that one.
fn as_other_user(socket: PathBuf, frames: Vec<Vec<u8>>) -> Vec<ApiError> {
    std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_uid(nobody).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut errors = Vec::new();
            for frame in frames {
                errors.push(raw(&socket, &frame).await);
            }
            errors
        })
    })
    .join()
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_may_read_what_the_group_may_read_and_change_nothing() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs as root and must not skip this"
        );
        println!("SKIPPED: becoming another user needs root");
        return;
    }
    let daemon = Daemon::start();
    let socket = daemon.socket();
    // Stands for membership in the socket's group, which the kernel checks in `connect`.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let frame = |request| {
        with_length(
            &serde_json::to_string(&RequestFrame {
                version: PROTOCOL_VERSION,
                request,
            })
            .unwrap(),
        )
    };
    let name = || "acme".to_owned();
    let text = || "#".repeat(60_000);
    let frames = vec![
        frame(Request::TenantSuspend { name: name() }),
        frame(Request::TenantResume { name: name() }),
        frame(Request::BackendDrain { name: name() }),
        frame(Request::BackendUndrain { name: name() }),
        frame(Request::PolicyApply {
            sources: vec![PolicySource::new(name(), text())],
            dry_run: false,
        }),
        frame(Request::Detach),
        // What is in packets is not for the group either.
        frame(Request::CaptureBegin(CaptureOrder {
            reasons: BTreeSet::from(["Bypass".to_owned()]),
            tenant: None,
            service: None,
            count: 1,
            seconds: 1,
            snap_bytes: 64,
        })),
        frame(Request::CaptureRead { serial: 1 }),
        frame(Request::CaptureEnd { serial: 1 }),
        // These two may be asked: the loop answers the first, and drops the second.
        frame(Request::PolicyApply {
            sources: vec![PolicySource::new(name(), text())],
            dry_run: true,
        }),
        frame(Request::Status),
        // More than a reader may send; only the length goes out, since the server refuses by it.
        70_000_u32.to_be_bytes().to_vec(),
    ];
    let errors = tokio::task::spawn_blocking(move || as_other_user(socket, frames))
        .await
        .unwrap();
    let codes: Vec<ErrorCode> = errors.iter().map(|error| error.code).collect();
    let mut expected = vec![ErrorCode::Forbidden; 9];
    expected.extend([ErrorCode::Refused, ErrorCode::Internal, ErrorCode::Malformed]);
    assert_eq!(codes, expected, "{errors:#?}");
    assert!(errors[0].message.contains("uid 65534"), "{}", errors[0].message);
    daemon.stop().await;
}

#[tokio::test]
async fn a_socket_nobody_may_open_and_one_nobody_answers_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Client::connect(&directory.path().join("none.sock"))
        .await
        .unwrap_err();
    assert!(matches!(missing, ClientError::Unreachable { .. }), "{missing}");
    assert!(
        missing.to_string().contains("enforcer-agent run --config"),
        "{missing}"
    );
}

#[tokio::test]
async fn only_a_dead_socket_is_replaced() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let second = ControlListener::bind(&socket, None).unwrap_err();
    assert!(matches!(second, ListenError::InUse { .. }), "{second}");

    let dead = daemon.directory.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    drop(ControlListener::bind(&dead, None).unwrap());
    let file = daemon.directory.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let refused = ControlListener::bind(&file, None).unwrap_err();
    assert!(matches!(refused, ListenError::NotASocket { .. }), "{refused}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    let no_group =
        ControlListener::bind(&daemon.directory.path().join("g.sock"), Some("no-such-group")).unwrap_err();
    assert!(matches!(no_group, ListenError::UnknownGroup { .. }), "{no_group}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_reply_that_is_under_way_is_finished_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    let listener = ControlListener::bind(&socket, None).unwrap();
    let (requests, mut incoming) = mpsc::channel(1);
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, requests, async {
        let _dropped = stopped.await;
    }));
    let mut client = Client::connect(&socket).await.unwrap();
    let mut idle = Client::connect(&socket).await.unwrap();
    let call = tokio::spawn(async move { client.call(Request::TenantSuspend { name: "acme".into() }).await });
    let request = incoming.recv().await.unwrap();
    stop.send(()).unwrap();
    let reply = Reply::TenantSuspend(ChangeReply {
        name: "acme".into(),
        changed: true,
        generation: 1,
    });
    request.answer.send(Ok(reply.clone())).unwrap();
    assert_eq!(call.await.unwrap().unwrap(), reply);
    server.await.unwrap();
    assert!(matches!(
        idle.call(Request::Status).await,
        Err(ClientError::Broken { .. })
    ));
}
