//! The Prometheus endpoint: `GET /metrics`, and nothing else.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Opens the endpoint.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves the text that was published last, until it is dropped.
pub async fn serve(listener: TcpListener, text: watch::Receiver<String>) {
    let answer = move || {
        let text = text.borrow().clone();
        async move { ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response() }
    };
    let router = Router::new().route("/metrics", get(answer));
    // axum's accept loop ends only with the task.
    let _ = axum::serve(listener, router).await;
}
