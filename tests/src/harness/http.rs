//! One HTTP request from a host of the lab, for figures and switches; load has its own client.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::HarnessError;
use crate::lab::Host;

/// Longest wait for a connection and for each part of the answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const ANSWER_LIMIT_BYTES: u64 = 16 << 20;

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status, such as 200.
    pub status: u16,
    /// The body as it came.
    pub body: String,
}

/// Gets a path, from inside the host's namespace.
///
/// # Errors
/// No connection, or no HTTP.
pub fn get(host: &Host, address: SocketAddr, path: &str) -> Result<HttpAnswer, HarnessError> {
    exchange(host, address, "GET", path, "")
}

/// Posts JSON to a path, from inside the host's namespace.
///
/// # Errors
/// As [`get`].
pub fn post(host: &Host, address: SocketAddr, path: &str, json: &str) -> Result<HttpAnswer, HarnessError> {
    exchange(host, address, "POST", path, json)
}

fn exchange(
    host: &Host,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> Result<HttpAnswer, HarnessError> {
    let url = format!("http://{address}{path}");
    let answer = host.enter(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // HTTP/1.0: the answer ends with the connection, and is never chunked.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.take(ANSWER_LIMIT_BYTES).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })?;
    let answer = answer.map_err(|error| HarnessError::Http {
        url: url.clone(),
        what: error.to_string(),
    })?;
    parse(&answer).ok_or_else(|| HarnessError::Http {
        url,
        what: format!("no HTTP: {:?}", answer.chars().take(80).collect::<String>()),
    })
}

fn parse(answer: &str) -> Option<HttpAnswer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?;
    Some(HttpAnswer {
        status: status.parse().ok()?,
        body: body.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = parse("HTTP/1.0 204 No Content\r\nServer: x\r\n\r\n").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
        let answer = parse("HTTP/1.1 200 OK\r\n\r\na\r\n\r\nb").unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "a\r\n\r\nb"));
        for text in ["", "HTTP/1.1 200 OK", "SSH-2.0\r\n\r\n", "HTTP/1.1 x\r\n\r\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
