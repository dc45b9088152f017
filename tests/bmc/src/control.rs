//! Control of a BMC that runs as a process of its own, over plain HTTP on loopback:
//!
//! | request | body |
//! |---|---|
//! | `GET /state` | what there is to see |
//! | `PUT /sensors/NAME` | `{"value": 43.5}` (states as bits for a discrete one) or `{"available": false}` |
//! | `PUT /faults` | [`Faults`]; what is left out is not wrong |
//! | `PUT /power` | `{"on": true}`, as by the machine's button |
//! | `POST /restart` | `{"silent_ms": 3000}`: the BMC restarts, its sessions are lost |
//! | `POST /started` | the machine started by itself: a one-time override is spent |

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinSet, spawn_blocking},
};

use crate::{Bmc, faults::Faults, personality::Reading, state::PowerAct};

/// The most bytes of a body that are read.
const MAX_BODY: usize = 1 << 16;

/// Answers on this listener until it is dropped.
pub async fn serve(listener: TcpListener, bmc: Arc<Bmc>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let bmc = bmc.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| exchange(request, bmc.clone()));
                    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    if let Err(error) = served.await {
                        tracing::debug!(%error, "a connection ended");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Asks a BMC's control; its status and what it says.
pub async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let path = path.replace(' ', "%20");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Ok((status.ok_or_else(|| io::Error::other("no HTTP"))?, body.to_owned()))
}

async fn exchange(request: Request<Incoming>, bmc: Arc<Bmc>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().replace("%20", " ");
    let body = Limited::new(body, MAX_BODY).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let done = spawn_blocking(move || {
        let body =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).map_err(|e| e.to_string())? };
        answer(&bmc, &head.method, &path, body)
    });
    let (status, body) = match done.await {
        Ok(Ok(body)) => (200, body),
        Ok(Err(error)) => (400, json!({ "error": error })),
        Err(error) => (500, json!({ "error": error.to_string() })),
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    Ok(response)
}

fn answer(bmc: &Bmc, method: &Method, path: &str, body: Value) -> Result<Value, String> {
    match (method.as_str(), path) {
        ("GET", "/state") => return Ok(state(bmc)),
        ("PUT", "/faults") => {
            let faults: Faults = serde_json::from_value(body).map_err(|error| error.to_string())?;
            bmc.set_faults(faults);
        }
        ("PUT", "/power") => {
            let on = body["on"].as_bool().ok_or("`on` is true or false")?;
            let act = if on { PowerAct::On } else { PowerAct::Off };
            bmc.set_power(act).map_err(|error| format!("{error:?}"))?;
        }
        ("POST", "/restart") => {
            let silent = body["silent_ms"].as_i64().unwrap_or(0);
            bmc.restart(SignedDuration::from_millis(silent));
        }
        ("POST", "/started") => bmc.lock().started(),
        ("PUT", path) if path.starts_with("/sensors/") => {
            let name = &path["/sensors/".len()..];
            let is_there = match (body["value"].as_f64(), body["available"].as_bool()) {
                (Some(value), _) => bmc.inject(name, value),
                (None, Some(available)) => bmc.lock().set_available(name, available),
                (None, None) => return Err("`value` is a number, or `available` true or false".into()),
            };
            if !is_there {
                return Err(format!("there is no sensor {name:?}"));
            }
        }
        _ => return Err(format!("there is no {method} {path}")),
    }
    Ok(json!({}))
}

/// What there is to see; no password.
fn state(bmc: &Bmc) -> Value {
    let is_on = bmc.chassis.power();
    let state = bmc.lock();
    let sensors = state.sensors.iter().map(|sensor| {
        let reads = match sensor.spec.reading {
            Reading::Analog { value, .. } => json!(value),
            Reading::Discrete(states) => json!(states),
        };
        (sensor.spec.name.clone(), if sensor.reads_nothing(is_on) { Value::Null } else { reads })
    });
    json!({
        "on": is_on, "boot": state.boot, "firmware": state.firmware, "faults": state.faults,
        "users": state.users.iter().map(|user| &user.name).filter(|name| !name.is_empty()).collect::<Vec<_>>(),
        "sensors": sensors.collect::<serde_json::Map<_, _>>(), "log_entries": state.log.records().len(), "media": state.media,
    })
}
