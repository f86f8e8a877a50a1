//! The connection to the scheduler: a WebSocket over the client's own HTTP connection.

use comptoir_wire::calls::{MESSAGE_BYTES_MAX, SUBPROTOCOL};
use reqwest::{
    Response, StatusCode, Upgraded,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use crate::daemon::client::{CallError, Client};

/// An open connection.
pub type Socket = WebSocketStream<Upgraded>;

/// Opens a connection of calls.
pub async fn connect(client: &Client) -> Result<Socket, CallError> {
    let key = generate_key();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_VERSION, "13"),
        (header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL),
        (header::SEC_WEBSOCKET_KEY, &key),
    ] {
        let value = HeaderValue::from_str(value).expect("words and base64 are of ASCII");
        headers.insert(name, value);
    }
    let response = client.connect("v1/calls", &headers).await?;
    check(&response, &key)?;
    let upgraded = response.upgrade().await?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
}

/// Does the other side speak the same protocol, and to us?
fn check(response: &Response, key: &str) -> Result<(), CallError> {
    let is = |name: &HeaderName, expected: &str| {
        let found = response.headers().get(name);
        found.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(expected.as_bytes()))
    };
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    let is_ours = accepted.is_some_and(|it| *it == derive_accept_key(key.as_bytes()));
    let is_fit = response.status() == StatusCode::SWITCHING_PROTOCOLS
        && is(&header::UPGRADE, "websocket")
        && is(&header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    if is_fit && is_ours {
        Ok(())
    } else {
        let reason = "it does not switch to calls of models";
        Err(CallError::Nonsense(reason.to_owned()))
    }
}
