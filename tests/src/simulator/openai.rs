//! `POST /v1/chat/completions` in OpenAI's form: whole or as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::engine::{Decode, Engine, QueueFull};
use super::{BACKEND_HEADER, MAX_TOKENS};

/// Stands for a tokenizer: OpenAI's rule of thumb for English.
const CHARACTERS_PER_TOKEN: usize = 4;
const WORDS: [&str; 8] = [
    "every ", "packet ", "is ", "judged ", "before ", "the ", "model ", "answers ",
];

/// The fields that matter here. Real clients send many more, so unknown ones are let pass.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    content: String,
}

/// Why a request is refused, with OpenAI's error types.
#[derive(Debug)]
enum Refusal {
    Unreadable(JsonRejection),
    NoMessages,
    TokenLimit { asked: u32 },
    QueueFull,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, kind, message) = match self {
            Self::Unreadable(rejection) => {
                (rejection.status(), "invalid_request_error", rejection.body_text())
            }
            Self::NoMessages => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                "messages is empty: send at least one".into(),
            ),
            Self::TokenLimit { asked } => (
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                format!("max_tokens is {asked}: ask for 1 to {MAX_TOKENS}"),
            ),
            Self::QueueFull => (
                StatusCode::TOO_MANY_REQUESTS,
                "overloaded_error",
                "the queue is full: try again later".into(),
            ),
        };
        (status, Json(json!({"error": {"message": message, "type": kind}}))).into_response()
    }
}

pub(super) async fn chat_completions(
    State(engine): State<Arc<Engine>>,
    request: Result<Json<ChatRequest>, JsonRejection>,
) -> Response {
    let name = engine.name();
    let mut response = match decode(&engine, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    response.headers_mut().insert(BACKEND_HEADER, name);
    response
}

async fn decode(
    engine: &Arc<Engine>,
    request: Result<Json<ChatRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(ChatRequest {
        messages,
        stream,
        max_tokens,
        max_completion_tokens,
    }) = request.map_err(Refusal::Unreadable)?;
    if messages.is_empty() {
        return Err(Refusal::NoMessages);
    }
    let tokens = max_completion_tokens
        .or(max_tokens)
        .unwrap_or(engine.config().default_tokens);
    if tokens == 0 || tokens > MAX_TOKENS {
        return Err(Refusal::TokenLimit { asked: tokens });
    }
    let characters: usize = messages
        .iter()
        .map(|message| message.content.chars().count())
        .sum();
    // The body limit keeps this far below u32::MAX.
    let prompt_tokens = characters.div_ceil(CHARACTERS_PER_TOKEN) as u32;
    let decode = engine
        .admit(prompt_tokens, tokens)
        .await
        .map_err(|QueueFull| Refusal::QueueFull)?;
    Ok(if stream {
        streamed(decode)
    } else {
        whole(decode, prompt_tokens, tokens).await
    })
}

/// What every object of one completion carries.
fn envelope(decode: &Decode, object: &str) -> Value {
    let config = decode.engine().config();
    let created_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    json!({
        "id": format!("chatcmpl-{}-{}", config.name, decode.sequence()),
        "object": object,
        "created": created_s,
        "model": config.model,
        "system_fingerprint": config.name,
    })
}

fn word(index: u32) -> &'static str {
    WORDS[index as usize % WORDS.len()]
}

async fn whole(mut decode: Decode, prompt_tokens: u32, tokens: u32) -> Response {
    let mut content = String::new();
    while let Some(index) = decode.next_token().await {
        content.push_str(word(index));
    }
    let mut answer = envelope(&decode, "chat.completion");
    answer["choices"] = json!([{
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "length",
    }]);
    answer["usage"] = json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    });
    Json(answer).into_response()
}

/// One event for each token, then `data: [DONE]`. The stream owns the decode, so a client that hangs up frees the slot.
fn streamed(decode: Decode) -> Response {
    let envelope = envelope(&decode, "chat.completion.chunk");
    let events = stream::unfold(Some((decode, envelope)), |state| async move {
        let (mut decode, envelope) = state?;
        let Some(index) = decode.next_token().await else {
            return Some((Ok::<_, Infallible>(Bytes::from_static(b"data: [DONE]\n\n")), None));
        };
        let mut chunk = envelope.clone();
        let finish_reason = decode.is_last().then_some("length");
        chunk["choices"] = json!([{
            "index": 0,
            "delta": {"role": "assistant", "content": word(index)},
            "finish_reason": finish_reason,
        }]);
        Some((
            Ok(Bytes::from(format!("data: {chunk}\n\n"))),
            Some((decode, envelope)),
        ))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(events)).into_response()
}
