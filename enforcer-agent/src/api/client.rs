//! The command line's end of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::{
    ApiError, ErrorCode, MAX_FRAME_BYTES, Outcome, PROTOCOL_VERSION, Reply, ReplyFrame, Request,
    RequestFrame, VersionOnly,
};

/// How long a reply may take: a policy with every bound reached compiles in less.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    frames: Framed<UnixStream, LengthDelimitedCodec>,
    path: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no agent answers at {}: {source}. Start it with `enforcer-agent run --config FILE`, or name its socket \
             with `--socket`", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The socket may not be opened.
    #[error("you may not open {}: run this as root, or as a member of the socket's group", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the agent at {} went away before it answered: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What came back is no reply.
    #[error("what answers at {} does not speak the control protocol: {reason}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The request is too large to send.
    #[error("the request has {bytes} bytes, more than the {MAX_FRAME_BYTES} that the agent reads")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The daemon refused, or failed.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

// === impl Client ===

impl Client {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::NotPermitted`].
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let connected = timeout(CONNECT_TIMEOUT, UnixStream::connect(path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = connected.map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path },
                _ => ClientError::Unreachable { path, source },
            }
        })?;
        let codec = LengthDelimitedCodec::builder()
            .max_frame_length(MAX_FRAME_BYTES)
            .new_codec();
        Ok(Self {
            frames: Framed::new(stream, codec),
            path: path.to_owned(),
        })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] holds what the daemon says.
    pub async fn call(&mut self, request: Request) -> Result<Reply, ClientError> {
        let frame = RequestFrame {
            version: PROTOCOL_VERSION,
            request,
        };
        let bytes = serde_json::to_vec(&frame).map_err(|error| self.protocol(&error))?;
        if bytes.len() > MAX_FRAME_BYTES {
            return Err(ClientError::TooLarge { bytes: bytes.len() });
        }
        // A daemon that has refused the connection has answered before it read anything, so that a failure to send is
        // told only if there is no answer either.
        let sent = self.frames.send(Bytes::from(bytes)).await;
        let answer = match timeout(REPLY_TIMEOUT, self.frames.next()).await {
            Ok(Some(Ok(answer))) => answer,
            Ok(Some(Err(source))) => return Err(self.broken(source)),
            Ok(None) => return Err(self.broken(sent.err().unwrap_or(io::ErrorKind::UnexpectedEof.into()))),
            Err(_) => return Err(self.broken(io::ErrorKind::TimedOut.into())),
        };
        self.read_reply(&answer)
    }

    fn read_reply(&self, answer: &[u8]) -> Result<Reply, ClientError> {
        let VersionOnly { version } =
            serde_json::from_slice(answer).map_err(|error| self.protocol(&error))?;
        if version != PROTOCOL_VERSION {
            let message = format!(
                "the agent speaks version {version} of the control protocol and this command line version \
                 {PROTOCOL_VERSION}; use the command line of the same release"
            );
            return Err(ApiError::new(ErrorCode::Version, message)
                .with("version", version)
                .into());
        }
        let ReplyFrame { version: _, outcome } =
            serde_json::from_slice(answer).map_err(|error| self.protocol(&error))?;
        match outcome {
            Outcome::Ok(reply) => Ok(reply),
            Outcome::Error(error) => Err(error.into()),
        }
    }

    fn protocol(&self, error: &serde_json::Error) -> ClientError {
        ClientError::Protocol {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken {
            path: self.path.clone(),
            source,
        }
    }
}
