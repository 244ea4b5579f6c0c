//! One long streamed answer, watched: does it still flow, has it stopped, and when.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::HarnessError;
use crate::lab::Host;
use crate::simulator::{BACKEND_HEADER, MAX_TOKENS};

/// Longest wait for the connection and for the answer to begin.
const START_LIMIT: Duration = Duration::from_secs(5);
/// Longest head of an answer.
const HEAD_LIMIT_BYTES: usize = 16 * 1024;

/// A streamed answer under way. Dropping it closes the connection.
#[derive(Debug)]
pub struct Stream {
    url: String,
    back_end: String,
    source: SocketAddr,
    socket: TcpStream,
    progress: Arc<Progress>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Debug)]
struct State {
    bytes: u64,
    last: Instant,
    /// How the stream ended, if it did.
    end: Option<String>,
}

// === impl Progress ===

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn follow(&self, mut socket: TcpStream) {
        let mut buffer = [0; 4096];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => return self.change(|state| state.end = Some("the server closed it".into())),
                Ok(bytes) => self.change(|state| {
                    state.bytes += bytes as u64;
                    state.last = Instant::now();
                }),
                Err(error) => return self.change(|state| state.end = Some(error.to_string())),
            }
        }
    }
}

// === impl Stream ===

impl Stream {
    /// Opens a connection on the host and asks for as many tokens as can be asked for. Returns when the answer has
    /// begun.
    ///
    /// # Errors
    /// No connection, or an answer other than 200.
    pub fn open(host: &Host, bind: Option<IpAddr>, target: SocketAddr) -> Result<Self, HarnessError> {
        let url = format!("http://{target} from {}", host.name());
        let failed = |what: String| HarnessError::Http {
            url: url.clone(),
            what,
        };
        let mut socket = host
            .enter(|| connect(bind, target))?
            .map_err(|error| failed(error.to_string()))?;
        let head = begin(&mut socket, target).map_err(|error| failed(error.to_string()))?;
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        if status != "200" {
            return Err(failed(format!("status {status:?}")));
        }
        let back_end = header(&head, BACKEND_HEADER).unwrap_or_default().to_owned();
        let source = socket.local_addr().map_err(|error| failed(error.to_string()))?;
        let reading = socket.try_clone().map_err(|error| failed(error.to_string()))?;
        let progress = Arc::new(Progress {
            state: Mutex::new(State {
                bytes: 0,
                last: Instant::now(),
                end: None,
            }),
            changed: Condvar::new(),
        });
        let shared = Arc::clone(&progress);
        let reader = thread::spawn(move || shared.follow(reading));
        Ok(Self {
            url,
            back_end,
            source,
            socket,
            progress,
            reader: Some(reader),
        })
    }

    /// The back end that answers.
    #[must_use]
    pub fn back_end(&self) -> &str {
        &self.back_end
    }

    /// The client's end of the connection.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Bytes received so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.progress.state().bytes
    }

    /// Waits until something has come that was sent after this call; answers how long that took.
    ///
    /// # Errors
    /// [`HarnessError::Late`] when nothing comes or the stream has ended.
    pub fn wait_for_more(&self, limit: Duration) -> Result<Duration, HarnessError> {
        let started = Instant::now();
        // What is in the socket's buffer already is read within moments: two arrivals after now are new.
        let before = self.progress.state().bytes;
        let mut arrivals = 0;
        let mut seen = before;
        let mut state = self.progress.state();
        loop {
            if state.bytes > seen {
                seen = state.bytes;
                arrivals += 1;
            }
            if arrivals >= 2 {
                return Ok(started.elapsed());
            }
            let left = limit.saturating_sub(started.elapsed());
            if let Some(end) = &state.end {
                return Err(self.late("more of the stream", limit, end.clone()));
            }
            if left.is_zero() {
                return Err(self.late("more of the stream", limit, "nothing since".into()));
            }
            state = self.wait(state, left);
        }
    }

    /// Waits until nothing has come for `quiet`; answers how long after this call the last byte came. A stream that
    /// ended counts as quiet.
    ///
    /// # Errors
    /// [`HarnessError::Late`] when the stream still flows.
    pub fn wait_for_silence(&self, quiet: Duration, limit: Duration) -> Result<Duration, HarnessError> {
        let started = Instant::now();
        let mut state = self.progress.state();
        loop {
            let silent_for = state.last.elapsed();
            if state.end.is_some() || silent_for >= quiet {
                return Ok(state.last.saturating_duration_since(started));
            }
            if started.elapsed() >= limit {
                return Err(self.late("silence", limit, format!("{} bytes", state.bytes)));
            }
            state = self.wait(state, quiet.saturating_sub(silent_for));
        }
    }

    fn wait<'lock>(&self, state: MutexGuard<'lock, State>, limit: Duration) -> MutexGuard<'lock, State> {
        let waited = self.progress.changed.wait_timeout(state, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn late(&self, awaited: &str, limit: Duration, last: String) -> HarnessError {
        HarnessError::Late {
            awaited: format!("{awaited} on {}", self.url),
            limit,
            last,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Wakes the reader; a connection that is gone already is as good.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn connect(bind: Option<IpAddr>, target: SocketAddr) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind as bind_socket, socket};
    let Some(source) = bind else {
        return TcpStream::connect_timeout(&target, START_LIMIT);
    };
    let family = if source.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let descriptor = socket(family, SocketType::STREAM, None)?;
    bind_socket(&descriptor, &SocketAddr::new(source, 0))?;
    rustix::net::sockopt::set_socket_timeout(
        &descriptor,
        rustix::net::sockopt::Timeout::Send,
        Some(START_LIMIT),
    )?;
    rustix::net::connect(&descriptor, &target)?;
    Ok(TcpStream::from(descriptor))
}

/// Sends the request and reads the head of the answer; what follows it stays in the socket.
fn begin(socket: &mut TcpStream, target: SocketAddr) -> std::io::Result<String> {
    let body = format!(
        "{{\"model\":\"any\",\"messages\":[{{\"role\":\"user\",\"content\":\"Go on.\"}}],\
         \"stream\":true,\"max_tokens\":{MAX_TOKENS}}}"
    );
    write!(
        socket,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    socket.set_read_timeout(Some(START_LIMIT))?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_LIMIT_BYTES || socket.read(&mut byte)? == 0 {
            return Err(std::io::Error::other("the answer has no head"));
        }
        head.extend(byte);
    }
    socket.set_read_timeout(None)?;
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn header<'head>(head: &'head str, name: &str) -> Option<&'head str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_whatever_their_case() {
        let head = "HTTP/1.1 200 OK\r\nX-Backend: gpu-1\r\ndate: x\r\n\r\n";
        assert_eq!(header(head, BACKEND_HEADER), Some("gpu-1"));
        assert_eq!(header(head, "content-length"), None);
    }
}
