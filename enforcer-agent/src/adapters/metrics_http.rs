//! The Prometheus endpoint: `GET /metrics`, and nothing else.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Opens the endpoint.
///
/// # Errors
/// If the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until it is dropped. Each request asks for the text anew.
pub async fn serve<F, T>(listener: TcpListener, text: F)
where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Option<String>> + Send,
{
    let answer = move || {
        let text = text.clone();
        async move {
            match text().await {
                Some(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
                None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            }
        }
    };
    let router = Router::new().route("/metrics", get(answer));
    // axum's accept loop ends only with the task.
    let _ = axum::serve(listener, router).await;
}
