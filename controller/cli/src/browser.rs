//! A login in a browser: it goes to who vouches for the person, and comes back to a port of this
//! program's own (RFC 8252, section 7.3).
//!
//! Invariant: only what comes with the state of this login ends it.

use std::{
    io::{BufRead as _, IsTerminal as _},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use crate::{client::Client, login::LoggedIn};

/// How long is waited: as long as a controller waits.
const LIFE: Duration = Duration::from_secs(600);

/// How long a connection may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest head of a request.
const LONGEST: usize = 16 << 10;

/// A login that was begun.
#[derive(Deserialize)]
struct Begun {
    url: String,
    login: String,
}

/// What the browser came back with, and the connection that waits for a page, if there is one.
struct Back {
    told: Result<String, String>,
    page: Option<TcpStream>,
}

/// Logs in by a browser.
pub(crate) async fn log_in(client: &Client) -> anyhow::Result<LoggedIn> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen for the browser")?;
    let redirect = format!("http://{}/callback", listener.local_addr()?);
    let begun = client.ask(Method::POST, "/v1/login/oidc", Some(json!({"redirect_uri": redirect}))).await?;
    let begun: Begun = serde_json::from_value(begun)?;
    let state = parameter(&Url::parse(&begun.url)?, "state").context("the controller's answer is not understood")?;
    eprintln!("Open this in a browser on this computer:\n\n  {}\n", begun.url);
    if std::io::stdin().is_terminal() {
        eprintln!("On another computer it ends at an address that cannot be opened: paste that here.\n");
    }
    open(&begun.url);
    let back = timeout(LIFE, come_back(listener, state.clone()));
    let back = back.await.context("nobody came back from the browser within ten minutes; begin again")?;
    let done = match back.told {
        Ok(code) => {
            let body = json!({"login": begun.login, "state": state, "code": code});
            client.ask(Method::POST, "/v1/login/oidc/finish", Some(body)).await
        }
        Err(why) => Err(anyhow::anyhow!("you were not let in there: {why}")),
    };
    if let Some(page) = back.page {
        let text = match &done {
            Ok(_) => "You are logged in. This page can be closed.".to_owned(),
            Err(error) => format!("You are not logged in.\n\n{error}"),
        };
        answer(page, "200 OK", &text).await;
    }
    Ok(serde_json::from_value(done?)?)
}

/// Waits for the browser, or for the address that somebody pastes.
async fn come_back(listener: TcpListener, state: String) -> Back {
    // One that comes is enough; more wait for nothing.
    let (tell, mut told) = mpsc::channel(1);
    if std::io::stdin().is_terminal() {
        let (tell, state) = (tell.clone(), state.clone());
        // It ends with the program: a line that is waited for cannot be given up.
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                match Url::parse(line.trim()).ok().and_then(|url| read(&url, &state)) {
                    Some(told) => drop(tell.blocking_send(Back { told, page: None })),
                    None => eprintln!("that is not the address that this login ends at"),
                }
            }
        });
    }
    let serve = async {
        loop {
            // Browsers connect ahead of what they ask: one after the other would wait for those.
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, state.clone(), tell.clone()));
            }
        }
    };
    tokio::select! {
        back = told.recv() => back.expect("the listener holds a sender"),
        () = serve => unreachable!("it goes on for ever"),
    }
}

/// One request of a browser.
async fn serve(mut stream: TcpStream, state: String, tell: mpsc::Sender<Back>) {
    let Ok(Some(target)) = timeout(PATIENCE, target(&mut stream)).await else { return };
    let url = Url::parse(&format!("http://127.0.0.1{target}")).ok().filter(|url| url.path() == "/callback");
    match url.and_then(|url| read(&url, &state)) {
        Some(told) => drop(tell.send(Back { told, page: Some(stream) }).await),
        None => answer(stream, "404 Not Found", "There is nothing here.").await,
    }
}

/// What a GET asks for.
async fn target(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > LONGEST || stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let line = std::str::from_utf8(&head).ok()?.lines().next()?.to_owned();
    Some(line.strip_prefix("GET ")?.split(' ').next()?.to_owned())
}

/// The code in the address of this login's end, or why there is none; `None` for any other address.
fn read(url: &Url, state: &str) -> Option<Result<String, String>> {
    if parameter(url, "state")? != state {
        return None;
    }
    let refused = || {
        let why = parameter(url, "error")?;
        let printable = |text: String| text.chars().filter(|letter| !letter.is_control()).take(300).collect::<String>();
        Some(Err(match parameter(url, "error_description") {
            Some(words) => format!("{} ({})", printable(words), printable(why)),
            None => printable(why),
        }))
    };
    parameter(url, "code").map(Ok).or_else(refused)
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

async fn answer(mut stream: TcpStream, status: &str, text: &str) {
    let page = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nreferrer-policy: no-referrer\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    let sent = async {
        stream.write_all(page.as_bytes()).await?;
        stream.shutdown().await
    };
    // The page is a courtesy: what counts is said on the terminal.
    let _ = timeout(PATIENCE, sent).await;
}

/// Opens an address in the browser of this desktop, where there is one.
fn open(url: &str) {
    if std::env::var_os("DISPLAY").is_none() && std::env::var_os("WAYLAND_DISPLAY").is_none() {
        return;
    }
    let mut opener = Command::new("xdg-open");
    // Where there is no such program, the address is there to be clicked.
    let _ = opener.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(query: &str) -> Option<Result<String, String>> {
        read(&Url::parse(&format!("http://127.0.0.1:1/callback?{query}")).unwrap(), "s")
    }

    #[test]
    fn only_what_has_the_state_of_this_login_ends_it() {
        assert_eq!(back("code=a%2Bb&state=s"), Some(Ok("a+b".into())));
        assert_eq!(back("code=a&state=t"), None);
        assert_eq!(back("code=a"), None);
        assert_eq!(back("state=s"), None);
        let refused = back("error=access_denied&error_description=not%0Atoday&state=s");
        assert_eq!(refused, Some(Err("nottoday (access_denied)".into())));
    }

    #[tokio::test]
    async fn a_browser_comes_back_between_other_requests() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let waiting = tokio::spawn(come_back(listener, "s".into()));
        let get = async |target: &str| {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
            stream
        };
        // Connected ahead, and silent.
        let _silent = TcpStream::connect(at).await.unwrap();
        for other in ["/favicon.ico", "/callback?code=x&state=another"] {
            let mut text = String::new();
            get(other).await.read_to_string(&mut text).await.unwrap();
            assert!(text.starts_with("HTTP/1.1 404"), "{text}");
        }
        let mut stream = get("/callback?code=c&state=s").await;
        let back = waiting.await.unwrap();
        assert_eq!(back.told, Ok("c".into()));
        answer(back.page.unwrap(), "200 OK", "done").await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("\r\n\r\ndone"), "{text}");
    }
}
