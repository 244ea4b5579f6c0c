//! One request, from the connection to the last byte, and the name for how it ended.

use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::stats::Outcome;
use super::{LoadPlan, Mode, Run};
use crate::simulator::BACKEND_HEADER;

/// Name of a back end that does not say its own.
const UNNAMED: &str = "(unnamed)";

/// An open connection with the task that drives it, which ends with it.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends one request of the run and records what became of it.
pub(super) async fn send(run: Arc<Run>) {
    run.recorder.attempted();
    let began = AtomicBool::new(false);
    // The parts have their own limits; this one bounds their sum.
    let outcome = match timeout(run.plan.total_timeout, exchange(&run, &began)).await {
        Ok(Ok(outcome) | Err(outcome)) => outcome,
        Err(_) if began.load(Ordering::Relaxed) => Outcome::Stalled,
        Err(_) => Outcome::ResponseTimeout,
    };
    run.recorder.ended(outcome);
}

/// `Err` and `Ok` both carry the outcome, so that `?` ends the exchange early.
async fn exchange(run: &Run, began: &AtomicBool) -> Result<Outcome, Outcome> {
    let plan = &run.plan;
    let started = Instant::now();
    let mut connection = match kept(run).await {
        Some(connection) => connection,
        None => {
            let stream = connect(plan.target.address, plan.bind, plan.connect_timeout).await?;
            run.recorder.connected(started.elapsed());
            open(stream).await?
        }
    };
    let answer = timeout(plan.idle_timeout, connection.sender.send_request(request(plan)))
        .await
        .map_err(|_| Outcome::ResponseTimeout)?
        .map_err(|error| outcome_of(&error))?;
    run.recorder.answer_began(back_end(&answer));
    began.store(true, Ordering::Relaxed);
    let succeeded = answer.status().is_success();
    receive(run, answer, succeeded.then_some(started)).await?;
    if plan.keep_alive {
        run.keep_idle(connection);
    }
    Ok(if succeeded {
        Outcome::Ok
    } else {
        Outcome::HttpError
    })
}

/// A connection of an earlier request that the server has not closed since.
async fn kept(run: &Run) -> Option<Connection> {
    let mut connection = run.take_idle()?;
    let ready = timeout(run.plan.connect_timeout, connection.sender.ready()).await;
    matches!(ready, Ok(Ok(()))).then_some(connection)
}

async fn connect(target: SocketAddr, bind: Option<IpAddr>, limit: Duration) -> Result<TcpStream, Outcome> {
    let connecting = async {
        let socket = if target.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.set_nodelay(true)?;
        if let Some(source) = bind {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        socket.connect(target).await
    };
    match timeout(limit, connecting).await {
        Ok(connected) => connected.map_err(|error| outcome_of_io(&error)),
        Err(_) => Err(Outcome::ConnectTimeout),
    }
}

async fn open(stream: TcpStream) -> Result<Connection, Outcome> {
    let (sender, driver) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| outcome_of(&error))?;
    // What ends the driver reaches the request as its own error.
    let task = tokio::spawn(async move {
        let _ = driver.await;
    });
    Ok(Connection {
        sender,
        driver: task.abort_handle(),
    })
}

fn request(plan: &LoadPlan) -> Request<Full<Bytes>> {
    let body = serde_json::json!({
        "model": "any",
        "messages": [{"role": "user", "content": "Say what the load balancer does."}],
        "stream": plan.mode == Mode::Stream,
        "max_tokens": plan.max_tokens,
    });
    let mut request = Request::new(Full::new(Bytes::from(body.to_string())));
    *request.method_mut() = hyper::Method::POST;
    // A target is only made from a URL that was parsed, or with the constant path.
    *request.uri_mut() = plan.target.path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::from_str(&plan.target.address.to_string()) {
        headers.insert(HOST, host);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if !plan.keep_alive {
        // The server then closes first, and the client's ports do not pile up in TIME_WAIT.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    request
}

fn back_end(answer: &Response<Incoming>) -> &str {
    answer
        .headers()
        .get(BACKEND_HEADER)
        .and_then(|name| name.to_str().ok())
        .unwrap_or(UNNAMED)
}

/// Reads the answer to its end without keeping it. `measured_from` is when the request began, if its latency counts.
async fn receive(
    run: &Run,
    mut answer: Response<Incoming>,
    mut measured_from: Option<Instant>,
) -> Result<(), Outcome> {
    loop {
        let next = timeout(run.plan.idle_timeout, answer.frame()).await;
        let frame = match next.map_err(|_| Outcome::Stalled)? {
            None => return Ok(()),
            Some(frame) => frame.map_err(|error| outcome_of(&error))?,
        };
        if let Some(data) = frame.data_ref() {
            run.recorder.received(data.len() as u64);
            if let Some(started) = measured_from.take() {
                run.recorder.first_byte(started.elapsed());
            }
        }
    }
}

fn outcome_of(error: &hyper::Error) -> Outcome {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Outcome::Reset;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                // The connection was open, and then the kernel gave up sending again.
                io::ErrorKind::TimedOut => Outcome::Stalled,
                _ => outcome_of_io(error),
            };
        }
        cause = error.source();
    }
    Outcome::Other
}

fn outcome_of_io(error: &io::Error) -> Outcome {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::NotConnected
        | ErrorKind::UnexpectedEof => Outcome::Reset,
        ErrorKind::TimedOut => Outcome::ConnectTimeout,
        // EACCES is how "administratively prohibited" reaches a socket.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
            Outcome::Unreachable
        }
        _ => Outcome::Other,
    }
}
