//! The daemon's end of the control socket.
//!
//! It decides who may speak and who may write, and hands each request to the daemon's loop with its [`Actor`]. It never
//! carries one out. Connections, frames, and requests under way are bounded; what is too much gets an error that says so.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use thiserror::Error;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tracing::{debug, warn};

use super::{
    Actor, ApiError, ErrorCode, MAX_FRAME_BYTES, MAX_READER_FRAME_BYTES, Outcome, PROTOCOL_VERSION, Reply,
    ReplyFrame, Request, RequestFrame, Role, VersionOnly,
};

/// Most connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Most connections at once of one user other than root: one reader cannot lock out the others.
const MAX_CONNECTIONS_PER_USER: usize = 16;
/// A connection that asks nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// A peer that does not take its reply for this long is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request waits for a place in the daemon's queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of the server waits for replies that are under way.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after `accept` failed, as when descriptors have run out.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
const BACKLOG: u32 = 128;
const SOCKET_MODE: u32 = 0o660;
const DIRECTORY_MODE: u32 = 0o755;

/// A request on its way to the daemon's loop.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked.
    pub request: Request,
    /// Who asks.
    pub actor: Actor,
    /// Where the answer goes. Dropping it answers `Internal`.
    pub answer: oneshot::Sender<Result<Reply, ApiError>>,
}

/// Why the socket cannot be opened.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another daemon answers there.
    #[error("another agent answers at {}; stop it, or give this one its own `socket`", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies at the path.
    #[error("{} exists and is no socket; move it away, or give another `socket`", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The configured group does not exist.
    #[error(
        "there is no group `{group}` in /etc/group for the control socket; create it, or correct `socketGroup`"
    )]
    UnknownGroup {
        /// The group.
        group: String,
    },
    /// The system refuses.
    #[error("cannot {action} the control socket {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The open control socket. Dropping it removes the file.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

// === impl ControlListener ===

impl ControlListener {
    /// Opens the socket with mode 0660 and, if a group is given, that group. A dead socket that lies there is replaced.
    ///
    /// Mode and group are set before the first `connect` can succeed, so that whoever gets through, and is neither root
    /// nor the daemon's own user, is a member of the socket's group: `handle` relies on it.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, ListenError> {
        let fail = |action| {
            move |source| ListenError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let group_id = group.map(find_group).transpose()?;
        if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
            fs::create_dir_all(directory).map_err(fail("make the directory of"))?;
            fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))
                .map_err(fail("open the directory of"))?;
        }
        remove_dead_socket(path)?;
        let socket = UnixSocket::new_stream().map_err(fail("make"))?;
        socket.bind(path).map_err(fail("bind"))?;
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(fail("set the mode of"))?;
        std::os::unix::fs::chown(path, None, group_id).map_err(fail("set the group of"))?;
        let listener = socket.listen(BACKLOG).map_err(fail("listen on"))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!(%error, path = %self.path.display(), "the control socket was not removed");
        }
    }
}

fn remove_dead_socket(path: &Path) -> Result<(), ListenError> {
    let fail = |source| ListenError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(fail),
        Err(error) => Err(fail(error)),
    }
}

/// The id of a group in `/etc/group`.
fn find_group(group: &str) -> Result<u32, ListenError> {
    let unknown = || ListenError::UnknownGroup {
        group: group.to_owned(),
    };
    let text = fs::read_to_string("/etc/group").map_err(|_| unknown())?;
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(group))
                .then(|| fields.nth(1)?.parse().ok())
                .flatten()
        })
        .next()
        .ok_or_else(unknown)
}

/// Accepts connections and passes their requests on until `shutdown` completes; then finishes the replies that are under
/// way and removes the socket.
pub async fn serve(
    listener: ControlListener,
    requests: mpsc::Sender<Incoming>,
    shutdown: impl Future<Output = ()>,
) {
    let (stop, stopped) = watch::channel(false);
    let connections = Arc::new(Connections::default());
    let mut tasks = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let connection = handle(stream, Arc::clone(&connections), requests.clone(), stopped.clone());
                    tasks.spawn(connection);
                }
                Err(error) => {
                    warn!(%error, "cannot accept connections on the control socket");
                    sleep(ACCEPT_BACKOFF).await;
                }
            },
        }
    }
    drop(listener);
    stop.send_replace(true);
    let finished = async { while tasks.join_next().await.is_some() {} };
    if timeout(GRACE, finished).await.is_err() {
        warn!("replies on the control socket were cut off");
    }
}

/// Connections that are open, by user.
#[derive(Debug, Default)]
struct Connections(Mutex<HashMap<u32, usize>>);

/// A place among them; dropping it gives it back.
struct Place {
    connections: Arc<Connections>,
    uid: u32,
}

// === impl Connections ===

impl Connections {
    fn enter(self: Arc<Self>, uid: u32) -> Option<Place> {
        {
            let mut by_user = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let total: usize = by_user.values().sum();
            let own = by_user.entry(uid).or_default();
            // Root is kept out by nobody: it may exceed both bounds, and could end the daemon anyway.
            if uid != 0 && (total >= MAX_CONNECTIONS || *own >= MAX_CONNECTIONS_PER_USER) {
                return None;
            }
            *own += 1;
        }
        Some(Place {
            connections: self,
            uid,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_user = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = by_user.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                by_user.remove(&self.uid);
            }
        }
    }
}

type Requests = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;
type Replies = FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>;

/// Root and the daemon's own user may write. Anybody else who could connect is in the socket's group, and may read.
fn role_of(uid: u32) -> Role {
    if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        Role::Write
    } else {
        Role::Read
    }
}

/// Frames of either direction: requests are bounded by role, replies are not.
fn framed(stream: UnixStream, most_bytes: usize) -> (Requests, Replies) {
    let codec = |most_bytes| {
        LengthDelimitedCodec::builder()
            .max_frame_length(most_bytes)
            .new_codec()
    };
    let (read, write) = stream.into_split();
    (
        FramedRead::new(read, codec(most_bytes)),
        FramedWrite::new(write, codec(MAX_FRAME_BYTES)),
    )
}

const fn most_request_bytes(role: Role) -> usize {
    match role {
        Role::Write => MAX_FRAME_BYTES,
        Role::Read => MAX_READER_FRAME_BYTES,
    }
}

/// One connection, from its first frame to its end.
async fn handle(
    stream: UnixStream,
    connections: Arc<Connections>,
    requests: mpsc::Sender<Incoming>,
    mut stopped: watch::Receiver<bool>,
) {
    let actor = match stream.peer_cred() {
        Ok(peer) => Actor {
            uid: peer.uid(),
            pid: peer.pid().filter(|pid| *pid > 0),
        },
        Err(error) => {
            warn!(%error, "the kernel does not say who connected to the control socket");
            return;
        }
    };
    let role = role_of(actor.uid);
    let (mut frames, mut replies) = framed(stream, most_request_bytes(role));
    let Some(_place) = connections.enter(actor.uid) else {
        let busy = ApiError::new(
            ErrorCode::Busy,
            "too many connections to the control socket; try again",
        );
        let _unsent = send(&mut replies, Err(busy)).await;
        return;
    };
    loop {
        let frame = tokio::select! {
            // A request that has already been read is answered first.
            biased;
            frame = timeout(IDLE, frames.next()) => frame,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let (outcome, last) = match frame {
            Err(_) | Ok(None) => return,
            Ok(Some(Ok(frame))) => (answer(&frame, actor, role, &requests).await, false),
            Ok(Some(Err(error))) => (Err(unreadable(&error, role)), true),
        };
        // What follows an unreadable frame is not the start of another.
        if send(&mut replies, outcome).await.is_err() || last {
            return;
        }
    }
}

/// Has one request carried out.
async fn answer(
    frame: &[u8],
    actor: Actor,
    role: Role,
    requests: &mpsc::Sender<Incoming>,
) -> Result<Reply, ApiError> {
    let request = read_request(frame)?;
    if request.role() > role {
        return Err(ApiError::new(
            ErrorCode::Forbidden,
            format!(
                "`{}` changes what is enforced or shows what is in packets, which only root and the agent's own user may \
                 do; you are {actor}",
                request.name()
            ),
        ));
    }
    let (sender, receiver) = oneshot::channel();
    let name = request.name();
    match requests
        .send_timeout(
            Incoming {
                request,
                actor,
                answer: sender,
            },
            QUEUE_TIMEOUT,
        )
        .await
    {
        Ok(()) => {}
        Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
            return Err(ApiError::new(
                ErrorCode::Busy,
                "the agent has too many requests under way; try again",
            ));
        }
        Err(mpsc::error::SendTimeoutError::Closed(_)) => {
            return Err(ApiError::new(
                ErrorCode::ShuttingDown,
                "the agent is ending; what is attached stays",
            ));
        }
    }
    receiver.await.unwrap_or_else(|_| {
        Err(ApiError::new(
            ErrorCode::Internal,
            format!("the agent dropped `{name}`; its log says why"),
        ))
    })
}

fn read_request(frame: &[u8]) -> Result<Request, ApiError> {
    let malformed = |error: serde_json::Error| {
        ApiError::new(ErrorCode::Malformed, format!("the frame is no request: {error}"))
    };
    let VersionOnly { version } = serde_json::from_slice(frame).map_err(malformed)?;
    if version != PROTOCOL_VERSION {
        let message = format!(
            "the client speaks version {version} of the control protocol and this agent version {PROTOCOL_VERSION}; \
             use the command line of the same release"
        );
        return Err(ApiError::new(ErrorCode::Version, message).with("version", PROTOCOL_VERSION));
    }
    let RequestFrame { version: _, request } = serde_json::from_slice(frame).map_err(malformed)?;
    Ok(request)
}

fn unreadable(error: &io::Error, role: Role) -> ApiError {
    let most = most_request_bytes(role);
    ApiError::new(
        ErrorCode::Malformed,
        format!("{error}; a request has at most {most} bytes"),
    )
    .with("limitBytes", most)
}

async fn send(replies: &mut Replies, outcome: Result<Reply, ApiError>) -> io::Result<()> {
    let encoded = encode(outcome)?;
    timeout(SEND_TIMEOUT, replies.send(encoded))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn encode(outcome: Result<Reply, ApiError>) -> io::Result<Bytes> {
    let frame = |outcome| {
        let outcome = match outcome {
            Ok(reply) => Outcome::Ok(reply),
            Err(error) => Outcome::Error(error),
        };
        serde_json::to_vec(&ReplyFrame {
            version: PROTOCOL_VERSION,
            outcome,
        })
        .map_err(io::Error::from)
    };
    let bytes = frame(outcome)?;
    if bytes.len() <= MAX_FRAME_BYTES {
        return Ok(bytes.into());
    }
    let message = format!(
        "the reply has {} bytes, more than the {MAX_FRAME_BYTES} of a frame; ask for less",
        bytes.len()
    );
    frame(Err(ApiError::new(ErrorCode::Refused, message))).map(Bytes::from)
}
