//! Logins by OpenID Connect, with a provider that somebody else wrote (oidc-provider-mock): people
//! come, their roles follow their groups, and what does not fit together is refused.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use rackhand_common::{
    pki::install_crypto,
    time::{Clock, Mono, Now},
};
use rackhand_controller::controller::{self, Config, File, Running, Seams};
use rackhand_tests::{
    operator::{self, Operator, PATIENCE},
    wait,
};
use reqwest::{Method, Url, redirect};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Where the browser comes back to; nobody listens, the test reads the address.
const BACK: &str = "http://127.0.0.1:5000/callback";

/// A clock that a test puts forward; clones are the same.
#[derive(Clone)]
struct Hands(Arc<AtomicU64>, Instant);

impl Clock for Hands {
    fn now(&self) -> Now {
        let ahead = Duration::from_secs(self.0.load(Ordering::SeqCst));
        Now { mono: Mono(self.1.elapsed() + ahead), wall: Timestamp::now() + ahead }
    }
}

impl Hands {
    fn forward(&self, by: SignedDuration) {
        self.0.fetch_add(by.unsigned_abs().as_secs(), Ordering::SeqCst);
    }
}

/// The provider, as a process of its own.
struct Provider {
    at: SocketAddr,
    process: Child,
    browser: reqwest::Client,
}

impl Provider {
    async fn start(at: SocketAddr) -> Self {
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/python/bin/oidc-provider-mock");
        let mut command = Command::new(&program);
        command.args(["--port", &at.port().to_string(), "--require-nonce", "true"]).env("NO_COLOR", "1");
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process =
            process.unwrap_or_else(|error| panic!("{}: {error}; cargo xtask test installs it", program.display()));
        let browser = reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
        let provider = Self { at, process, browser };
        wait::until("the provider answers", PATIENCE, async || {
            let asked = provider.browser.get(format!("{}/.well-known/openid-configuration", provider.issuer()));
            asked.send().await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        provider
    }

    fn issuer(&self) -> String {
        format!("http://{}", self.at)
    }

    /// What it knows of somebody from now on.
    async fn knows(&self, subject: &str, claims: Value) {
        let url = format!("{}/users/{subject}", self.issuer());
        self.browser.put(url).json(&claims).send().await.unwrap().error_for_status().unwrap();
    }

    /// Somebody opens the address of a login in their browser and says who they are; where the
    /// browser is sent back to.
    async fn visit(&self, url: &str, subject: &str) -> Url {
        let form = format!("sub={subject}");
        let request = self.browser.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 302, "{}", answer.text().await.unwrap());
        Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap()
    }

    /// The same, and `state` and `code` that the browser comes back with.
    async fn log_in(&self, url: &str, subject: &str) -> (String, String) {
        let back = self.visit(url, subject).await;
        assert!(back.as_str().starts_with(BACK), "{back}");
        (parameter(&back, "state"), parameter(&back, "code"))
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn parameter(url: &Url, name: &str) -> String {
    url.query_pairs().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name} in {url}")).1.into_owned()
}

/// A controller that this provider vouches for people to.
struct World {
    provider: Provider,
    admin: Operator,
    config: Config,
    ca: PathBuf,
    clock: Hands,
    controller: Option<(Running, CancellationToken)>,
    _directory: tempfile::TempDir,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl World {
    async fn new() -> Self {
        install_crypto();
        let directory = tempfile::tempdir().unwrap();
        let provider = Provider::start(free()).await;
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "hush").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let listen = free();
        let role = |group: &str, role: &str, scope: &str| json!({"group": group, "role": role, "scope": scope});
        let file: File = serde_json::from_value(json!({
            "data": directory.path().join("data"), "names": ["127.0.0.1"],
            "api": {"listen": listen}, "agents": {"listen": "127.0.0.1:0"},
            "oidc": {
                "issuer": provider.issuer(), "client_id": "rackhand", "secret_file": secret,
                "roles": [
                    role("noc", "operator", "everything"),
                    role("shop", "collaborator", "project acme:shop"),
                    role("moon", "viewer", "site moon"),
                ],
            },
        }))
        .unwrap();
        let config = Config::try_from(file).unwrap();
        let clock = Hands(Arc::default(), Instant::now());
        let seams = || Seams { clock: Arc::new(clock.clone()) };
        let (token, ca) = operator::init(&config, seams()).await.unwrap();
        let admin = Operator::new(format!("https://{listen}"), &ca, token).unwrap();
        let mut world = Self { provider, admin, config, ca, clock, controller: None, _directory: directory };
        world.start().await;
        world.admin.post("/v1/organisations", json!({"name": "acme"})).await.unwrap();
        world.admin.post("/v1/projects", json!({"name": "shop", "organisation": "acme"})).await.unwrap();
        world
    }

    async fn start(&mut self) {
        let stop = CancellationToken::new();
        let seams = Seams { clock: Arc::new(self.clock.clone()) };
        self.controller = Some((controller::start(self.config.clone(), seams, stop.clone()).await.unwrap(), stop));
    }

    async fn stop(&mut self) {
        let (running, stop) = self.controller.take().unwrap();
        stop.cancel();
        running.ended().await.unwrap();
    }

    async fn begin(&self) -> Value {
        self.admin.post("/v1/login/oidc", json!({"redirect_uri": BACK})).await.unwrap()
    }

    async fn finish(&self, begun: &Value, state: &str, code: &str) -> Result<Value, String> {
        let body = json!({"login": begun["login"], "state": state, "code": code});
        self.admin.post("/v1/login/oidc/finish", body).await.map_err(|error| error.to_string())
    }

    /// Somebody logs in from the beginning to the end.
    async fn log_in(&self, subject: &str) -> Result<Operator, String> {
        let begun = self.begin().await;
        let (state, code) = self.provider.log_in(begun["url"].as_str().unwrap(), subject).await;
        let done = self.finish(&begun, &state, &code).await?;
        let token = done["token"].as_str().unwrap().to_owned();
        Ok(Operator::new(self.admin.url().to_owned(), &self.ca, token).unwrap())
    }

    async fn refused(&self, subject: &str, why: &[&str]) {
        let said = self.log_in(subject).await.unwrap_err();
        assert!(why.iter().all(|why| said.contains(why)), "{said}");
    }
}

/// What a person is called and may do where, in words.
async fn roles(who: &Operator) -> String {
    let told = who.get("/v1/whoami").await.unwrap();
    let roles = told["roles"].as_array().unwrap();
    let mut roles: Vec<_> = roles.iter().map(|one| format!("{} {}", one["role"], one["at"]).replace('"', "")).collect();
    roles.sort();
    format!("{}: {}", told["name"].as_str().unwrap(), roles.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn people_come_by_their_provider_and_their_roles_follow_its_groups() {
    let mut world = World::new().await;
    let (provider, admin) = (&world.provider, world.admin.clone());
    provider.knows("1", json!({"email": "eve@example.net"})).await;
    world.refused("1", &["403", "the provider tells no group of yours", "oidc.roles"]).await;
    provider.knows("1", json!({"email": "eve@example.net", "groups": ["moon", "staff"]})).await;
    // A site that is not there gives nobody a role.
    world.refused("1", &["403", "none of your groups has a role here (moon, staff)"]).await;
    assert_eq!(admin.get("/v1/people").await.unwrap()["items"].as_array().unwrap().len(), 1);

    let ada = |groups: &[&str]| json!({"email": "ada@example.net", "email_verified": true, "groups": groups});
    provider.knows("2", ada(&["noc", "staff"])).await;
    let first = world.log_in("2").await.unwrap();
    assert_eq!(roles(&first).await, "ada@example.net: operator everything");
    let person = admin.get("/v1/people/ada@example.net").await.unwrap();
    assert_eq!((&person["issuer"], &person["email"]), (&json!(provider.issuer()), &json!("ada@example.net")));

    // One role is granted by hand; the groups are others at the next login.
    let by_hand = json!({"person": "ada@example.net", "role": "billing", "scope": {"kind": "everything"}});
    let by_hand = admin.post("/v1/bindings", by_hand).await.unwrap();
    provider.knows("2", ada(&["shop"])).await;
    let second = world.log_in("2").await.unwrap();
    let now = "ada@example.net: billing everything, collaborator project acme:shop";
    assert_eq!(roles(&second).await, now);
    // What an earlier login gave may no more than its person.
    assert_eq!(roles(&first).await, now);
    first.get("/v1/racks").await.unwrap_err();

    // Known by issuer and subject, whatever either side calls her.
    admin.ask(Method::PATCH, "/v1/people/ada@example.net", Some(json!({"name": "ada"}))).await.unwrap();
    provider.knows("2", json!({"email": "countess@example.net", "groups": []})).await;
    assert_eq!(roles(&world.log_in("2").await.unwrap()).await, "ada: billing everything");
    // What follows from a group and is granted by hand stays without the group.
    provider.knows("2", ada(&["noc"])).await;
    world.log_in("2").await.unwrap();
    let kept = json!({"person": "ada", "role": "operator", "scope": {"kind": "everything"}});
    let kept = admin.post("/v1/bindings", kept).await.unwrap();
    assert_eq!(kept["granted_by"], "admin");
    provider.knows("2", ada(&[])).await;
    assert_eq!(roles(&world.log_in("2").await.unwrap()).await, "ada: billing everything, operator everything");
    for binding in [by_hand, kept] {
        let path = format!("/v1/bindings/{}", binding["id"].as_str().unwrap());
        admin.ask(Method::DELETE, &path, None).await.unwrap();
    }
    world.refused("2", &["403", "no group of yours"]).await;
    // Taken away by a login that is refused, too.
    provider.knows("2", ada(&["noc"])).await;
    let third = world.log_in("2").await.unwrap();
    provider.knows("2", ada(&["staff"])).await;
    world.refused("2", &["none of your groups has a role here (staff)"]).await;
    assert_eq!(roles(&third).await, "ada: ");

    // Who was removed does not come back by a group, and does by an administrator.
    provider.knows("2", ada(&["noc"])).await;
    admin.ask(Method::DELETE, "/v1/people/ada", None).await.unwrap();
    third.get("/v1/whoami").await.unwrap_err();
    world.refused("2", &["403", "you were removed here", "rackhand person create NAME --subject 2"]).await;
    admin.post("/v1/people", json!({"name": "ada", "subject": "2"})).await.unwrap();
    assert_eq!(roles(&world.log_in("2").await.unwrap()).await, "ada: operator everything");

    let whole = wait::until("the record is in the chain", PATIENCE, async || {
        let end = admin.get("/v1/audit/end").await.map_err(|error| error.to_string())?;
        if end["unlinked"] == 0 { Ok(()) } else { Err(end.to_string()) }
    });
    whole.await;
    let record = admin.get("/v1/audit?by=ada&limit=200").await.unwrap();
    let actions: Vec<_> = record["items"].as_array().unwrap().iter().map(|one| one["action"].clone()).collect();
    let count = |action: &str| actions.iter().filter(|one| **one == action).count();
    assert!(count("POST /v1/login/oidc/finish") >= 4, "{actions:?}");
    assert_eq!(count("POST /v1/login/oidc/finish (refused)"), 2, "{actions:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_together_is_refused_and_says_why() {
    let mut world = World::new().await;
    let provider = &world.provider;
    provider.knows("2", json!({"email": "ada@example.net", "groups": ["noc"]})).await;
    let url = |begun: &Value| begun["url"].as_str().unwrap().to_owned();

    // Asked for as it has to be.
    let begun = world.begin().await;
    let asked = Url::parse(&url(&begun)).unwrap();
    assert_eq!(parameter(&asked, "code_challenge_method"), "S256");
    assert_eq!(parameter(&asked, "scope"), "openid email profile");
    assert_eq!(parameter(&asked, "redirect_uri"), BACK);
    assert_ne!(parameter(&asked, "nonce"), parameter(&asked, "state"));
    assert!(!asked.as_str().contains(begun["login"].as_str().unwrap()));

    // Another state; and then it is over, also with the right one.
    let (state, code) = provider.log_in(&url(&begun), "2").await;
    let said = world.finish(&begun, "another", &code).await.unwrap_err();
    assert!(said.contains("401") && said.contains("the state is not that of this login"), "{said}");
    let said = world.finish(&begun, &state, &code).await.unwrap_err();
    assert!(said.contains("401") && said.contains("this login is not known"), "{said}");

    // Once is once.
    let begun = world.begin().await;
    let (state, code) = provider.log_in(&url(&begun), "2").await;
    world.finish(&begun, &state, &code).await.unwrap();
    let said = world.finish(&begun, &state, &code).await.unwrap_err();
    assert!(said.contains("this login is not known"), "{said}");
    // The provider takes a code once as well.
    let begun = world.begin().await;
    let (state, _) = provider.log_in(&url(&begun), "2").await;
    let said = world.finish(&begun, &state, &code).await.unwrap_err();
    assert!(said.contains("401") && said.contains("did not take the code"), "{said}");

    // A code of another login: its token has the other's nonce.
    let (mine, theirs) = (world.begin().await, world.begin().await);
    let (state, _) = provider.log_in(&url(&mine), "2").await;
    let (_, code) = provider.log_in(&url(&theirs), "2").await;
    let said = world.finish(&mine, &state, &code).await.unwrap_err();
    assert!(said.contains("401") && said.contains("nonce"), "{said}");

    // Too late.
    let begun = world.begin().await;
    let (state, code) = provider.log_in(&url(&begun), "2").await;
    world.clock.forward(SignedDuration::from_mins(10));
    let said = world.finish(&begun, &state, &code).await.unwrap_err();
    assert!(said.contains("401") && said.contains("longer than 10 minutes"), "{said}");

    // Who says that they are somebody, without the provider's word for it or with a name that is another's.
    provider.knows("3", json!({"email": "ada@example.net", "email_verified": false, "groups": ["noc"]})).await;
    world.refused("3", &["403", "ada@example.net is not verified at the provider"]).await;
    provider.knows("4", json!({"email": "admin", "groups": ["noc"]})).await;
    world.refused("4", &["409", "there is a person `admin` already"]).await;
    provider.knows("5", json!({"email": "../../etc/passwd", "groups": ["noc"]})).await;
    world.refused("5", &["403", "cannot be a name here", "--subject 5"]).await;
    provider.knows("6", json!({"email": "", "preferred_username": "bob", "groups": "noc"})).await;
    assert_eq!(roles(&world.log_in("6").await.unwrap()).await, "bob: operator everything");

    let elsewhere = json!({"redirect_uri": "https://evil.example/callback"});
    let said = world.admin.post("/v1/login/oidc", elsewhere).await.unwrap_err().to_string();
    assert!(said.contains("422") && said.contains("/redirect_uri"), "{said}");

    // Nobody asks without end.
    let mut said = String::new();
    for _ in 0..40 {
        match world.admin.post("/v1/login/oidc", json!({"redirect_uri": BACK})).await {
            Ok(_) => {}
            Err(error) => said = error.to_string(),
        }
    }
    assert!(said.contains("429") && said.contains("too many logins were tried"), "{said}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_over_when_the_controller_is_and_a_provider_that_is_away_stops_nothing_else() {
    let mut world = World::new().await;
    world.provider.knows("2", json!({"email": "ada@example.net", "groups": ["noc"]})).await;
    let begun = world.begin().await;
    let (state, code) = world.provider.log_in(begun["url"].as_str().unwrap(), "2").await;
    world.stop().await;
    world.start().await;
    let said = world.finish(&begun, &state, &code).await.unwrap_err();
    assert!(said.contains("401") && said.contains("the controller was started anew in the meantime"), "{said}");
    world.log_in("2").await.unwrap();
    world.stop().await;

    // The provider is gone, and comes back with new keys.
    let at = world.provider.at;
    let _ = world.provider.process.kill();
    let _ = world.provider.process.wait();
    world.start().await;
    let said = world.admin.post("/v1/login/oidc", json!({"redirect_uri": BACK})).await.unwrap_err().to_string();
    assert!(said.contains("503") && said.contains(&world.provider.issuer()), "{said}");
    let password = json!({"new": "correct horse battery"});
    world.admin.ask(Method::PUT, "/v1/password", Some(password)).await.unwrap();
    let login = json!({"name": "admin", "password": "correct horse battery"});
    world.admin.post("/v1/login", login).await.unwrap();
    world.provider = Provider::start(at).await;
    world.provider.knows("2", json!({"email": "ada@example.net", "groups": ["noc"]})).await;
    world.clock.forward(SignedDuration::from_secs(5));
    world.log_in("2").await.unwrap();

    // Started anew while the controller runs, it signs by a key that the controller has not seen.
    let _ = world.provider.process.kill();
    let _ = world.provider.process.wait();
    world.provider = Provider::start(at).await;
    world.provider.knows("2", json!({"email": "ada@example.net", "groups": ["noc"]})).await;
    world.log_in("2").await.unwrap();

    // Without it in the configuration nobody comes by it, and without a restart.
    let mut without = world.config.clone();
    without.oidc = None;
    world.controller.as_ref().unwrap().0.settings.take_over(&without).unwrap();
    let said = world.admin.post("/v1/login/oidc", json!({"redirect_uri": BACK})).await.unwrap_err().to_string();
    assert!(said.contains("404") && said.contains("OpenID Connect is not configured here"), "{said}");
    world.stop().await;
}

/// The program that was built with this test, with a home of its own.
fn program(home: &Path, words: &[&str]) -> tokio::process::Command {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("rackhand");
    assert!(path.is_file(), "{} is not there: run `cargo build --workspace --bins` first", path.display());
    let mut command = tokio::process::Command::new(path);
    command.args(words).env("HOME", home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let inherited = ["XDG_CONFIG_HOME", "RACKHAND_CONTEXT", "RACKHAND_CONTROLLER", "RACKHAND_TOKEN", "RACKHAND_CA"];
    for name in inherited.into_iter().chain(["DISPLAY", "WAYLAND_DISPLAY"]) {
        command.env_remove(name);
    }
    command.kill_on_drop(true);
    command
}

/// Logs in with the program as somebody at the provider: what the browser shows at the end, and the
/// program's own words.
async fn by_program(world: &World, home: &Path, words: &[&str], subject: &str) -> (String, std::process::Output) {
    let mut child = program(home, words).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let url = loop {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("a line comes").unwrap().expect("it waits");
        if line.trim().starts_with("http://") {
            break line.trim().to_owned();
        }
    };
    let back = world.provider.visit(&url, subject).await;
    let page = world.provider.browser.get(back).send().await.unwrap().text().await.unwrap();
    while lines.next_line().await.unwrap().is_some() {}
    (page, child.wait_with_output().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_program_logs_in_by_a_browser_and_out_again() {
    let mut world = World::new().await;
    let home = tempfile::tempdir().unwrap();
    world.provider.knows("2", json!({"email": "ada@example.net", "groups": ["noc"]})).await;
    let ca = world.ca.to_str().unwrap().to_owned();
    let words = ["login", "--oidc", "--controller", world.admin.url(), "--ca", &ca];
    let (page, out) = by_program(&world, home.path(), &words, "2").await;
    assert_eq!(page, "You are logged in. This page can be closed.");
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success() && said.contains("as `ada@example.net`"), "{said}");
    let file = home.path().join(".config/rackhand/config.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let list = program(home.path(), &["rack", "list"]).output().await.unwrap();
    assert!(list.status.success(), "{list:?}");
    let token = Operator::new(world.admin.url().to_owned(), &world.ca, saved_token(&file)).unwrap();
    token.get("/v1/whoami").await.unwrap();

    let out = program(home.path(), &["logout"]).output().await.unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("its token is no longer good"), "{out:?}");
    token.get("/v1/whoami").await.unwrap_err();
    assert!(saved_token(&file).is_empty());

    // Again, without saying where; and as somebody who is nobody here.
    world.provider.knows("1", json!({"email": "eve@example.net"})).await;
    let (page, out) = by_program(&world, home.path(), &["login", "--oidc"], "1").await;
    assert!(!out.status.success() && page.contains("the provider tells no group of yours"), "{page}");
    let (_, out) = by_program(&world, home.path(), &["login", "--oidc"], "2").await;
    assert!(out.status.success(), "{out:?}");
    world.stop().await;
}

fn saved_token(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let token = text.lines().find_map(|line| line.strip_prefix("token = ")).unwrap();
    token.trim_matches('"').to_owned()
}
