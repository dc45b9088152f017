//! The API is what its document says it is: Schemathesis makes requests from the published
//! document, right ones and wrong ones, and looks at every answer.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use rackhand_common::pki::install_crypto;
use rackhand_controller::controller::{self, Config, File, Seams};
use rackhand_tests::operator::{self, Operator};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Seconds of making requests up, after those that are the same each time: as an administrator,
/// and as somebody who only sees.
const SECONDS: [u32; 2] = [80, 30];

/// What it is given of identifiers, so that more than "there is no such thing" is answered, and of
/// refusals.
const CONFIG: &str = r#"
[parameters]
"path.rack" = "lab"
"path.pool" = "servers"
"path.address" = "10.20.0.1"

# What is wrong in two ways may be refused for either: 412 is for a thing that has changed since.
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 412, 415, 422, 428, 429]
"#;

/// What is not looked at: whether anything that fits its schema is accepted. Much is refused for
/// reasons that a schema cannot tell, such as a name that is taken.
const NOT: &str = "positive_data_acceptance";

struct Api {
    url: String,
    ca: PathBuf,
}

impl Api {
    /// What Schemathesis has to say of the API as whoever has this token; nothing when all is well.
    fn judge(&self, token: &str, dir: &Path, seconds: u32) -> Result<(), String> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/python/bin/schemathesis");
        let config = dir.join("schemathesis.toml");
        fs::write(&config, CONFIG).unwrap();
        let said = Command::new(&program)
            .current_dir(dir)
            .args(["--config-file", config.to_str().unwrap(), "run", &format!("{}/v1/openapi.json", self.url)])
            .args(["--header", &format!("Authorization: Bearer {token}"), "--tls-verify", self.ca.to_str().unwrap()])
            .args(["--phases", "examples,coverage,fuzzing", "--max-time", &seconds.to_string(), "--seed", "1"])
            .args(["--checks", "all", "--exclude-checks", NOT])
            // It never ends.
            .args(["--exclude-path", "/v1/events/stream", "--no-color", "--generation-database", "none"])
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}; cargo xtask test installs it", program.display()));
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        if said.status.success() { Ok(()) } else { Err(text + &String::from_utf8_lossy(&said.stderr)) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_one_that_the_document_has() {
    install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file: File = serde_json::from_value(json!({
        "data": dir.path().join("data"), "names": ["127.0.0.1"],
        "api": {"listen": listen, "requests_per_second": 100_000}, "agents": {"listen": "127.0.0.1:0"},
    }))
    .unwrap();
    let config = Config::try_from(file).unwrap();
    let (token, ca) = operator::init(&config, Seams::default()).await.unwrap();
    let shutdown = CancellationToken::new();
    let running = controller::start(config, Seams::default(), shutdown.clone()).await.unwrap();
    let api = Api { url: format!("https://{listen}"), ca };
    let operator = Operator::new(api.url.clone(), &api.ca, token.clone()).unwrap();
    furnish(&operator).await;
    let viewer = viewer(&operator).await;

    let judged = move || {
        // What only sees changes nothing: it goes first.
        let seen = api.judge(&viewer, dir.path(), SECONDS[1]);
        seen.and_then(|()| api.judge(&token, dir.path(), SECONDS[0]))
    };
    let verdict = tokio::task::spawn_blocking(judged).await.unwrap();
    shutdown.cancel();
    running.ended().await.unwrap();
    verdict.unwrap_or_else(|said| panic!("{said}"));
}

/// The token of somebody who sees everything and changes nothing.
async fn viewer(operator: &Operator) -> String {
    let (name, password) = ("vera", "a password of vera's");
    operator.post("/v1/people", json!({"name": name, "password": password})).await.unwrap();
    let binding = json!({"person": name, "role": "viewer", "scope": {"kind": "everything"}});
    operator.post("/v1/bindings", binding).await.unwrap();
    let login = operator.post("/v1/login", json!({"name": name, "password": password})).await.unwrap();
    login["token"].as_str().unwrap().to_owned()
}

/// Things to ask about.
async fn furnish(operator: &Operator) {
    let things: [(&str, Value); 4] = [
        (
            "/v1/racks",
            json!({"name": "lab", "network": {"node": "10.77.0.1/24", "delegated": ["10.77.0.100", "10.77.0.199"]}}),
        ),
        ("/v1/aggregates", json!({"prefix": "10.20.0.0/16", "source": "private"})),
        ("/v1/pools", json!({"name": "servers", "kind": "private", "prefixes": ["10.20.0.0/17"]})),
        ("/v1/claims", json!({"pool": "servers", "length": 32, "name": "load-balancer"})),
    ];
    for (path, body) in things {
        operator.post(path, body).await.unwrap();
    }
}
