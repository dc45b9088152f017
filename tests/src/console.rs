//! A machine's console as a client of the API has it: a websocket.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::operator::PATIENCE;

/// A console that is open.
#[derive(Debug)]
pub struct Console {
    socket: WebSocketStream<reqwest::Upgraded>,
    /// All that was printed.
    pub shown: String,
    /// All that was told beside that.
    pub told: Vec<Value>,
    /// Whether the other end has closed it.
    pub is_over: bool,
}

impl Console {
    /// On a connection that was upgraded.
    pub async fn new(connection: reqwest::Upgraded) -> Self {
        let socket = WebSocketStream::from_raw_socket(connection, Role::Client, None).await;
        Self { socket, shown: String::new(), told: Vec::new(), is_over: false }
    }

    /// Types this.
    pub async fn type_in(&mut self, text: &str) {
        self.socket.send(Message::Binary(text.as_bytes().to_vec().into())).await.expect("the console is open");
    }

    /// `take`, `give` or `break`.
    pub async fn wish(&mut self, what: &str) {
        let text = json!({ "do": what }).to_string();
        self.socket.send(Message::Text(text.into())).await.expect("the console is open");
    }

    /// Takes in what comes until something is so.
    pub async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(!self.is_over, "it ended before {what}: {:?}, {:?}", self.shown, self.told);
            let Ok(message) = timeout_at(end, self.socket.next()).await else {
                panic!("not in time: {what}: {:?}, {:?}", self.shown, self.told);
            };
            self.take(message);
        }
    }

    /// Takes in what comes for so long.
    pub async fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(message) = timeout_at(end, self.socket.next()).await {
            self.take(message);
            if self.is_over {
                return;
            }
        }
    }

    /// Waits until this was printed.
    pub async fn shows(&mut self, wanted: &str) {
        self.until(wanted, |console| console.shown.contains(wanted)).await;
    }

    /// Waits until the latest said of the keyboard is this.
    pub async fn keyboard(&mut self, who: Option<&str>, is_mine: bool) {
        let wanted = json!({ "event": "writer", "who": who, "you": is_mine });
        let latest = |console: &Self| console.told.iter().rfind(|told| told["event"] == "writer") == Some(&wanted);
        self.until(&wanted.to_string(), latest).await;
    }

    /// Leaves.
    pub async fn leave(mut self) {
        let _ = self.socket.close(None).await;
    }

    fn take(&mut self, message: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>) {
        match message {
            Some(Ok(Message::Binary(bytes))) => self.shown += &String::from_utf8_lossy(&bytes),
            Some(Ok(Message::Text(text))) => self.told.push(serde_json::from_str(&text).expect("notices are JSON")),
            Some(Ok(Message::Close(_)) | Err(_)) | None => self.is_over = true,
            Some(Ok(_)) => {}
        }
    }
}
