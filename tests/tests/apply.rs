//! Declarative files against a real controller: the operator's program applies and exports them.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use expect_test::expect;
use rackhand_common::pki::install_crypto;
use rackhand_controller::controller::{self, Config, File, Running, Seams};
use rackhand_tests::operator::{self, Operator};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// A controller of its own, and its operator's program.
struct Bench {
    home: tempfile::TempDir,
    url: String,
    ca: PathBuf,
    operator: Operator,
    shutdown: CancellationToken,
    running: Running,
}

/// What a command said.
struct Said {
    is_success: bool,
    out: String,
    err: String,
}

impl Bench {
    async fn new() -> Self {
        install_crypto();
        let home = tempfile::tempdir().unwrap();
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file: File = serde_json::from_value(json!({
            "data": home.path().join("data"), "names": ["127.0.0.1"],
            "api": {"listen": listen}, "agents": {"listen": "127.0.0.1:0"},
        }))
        .unwrap();
        let config = Config::try_from(file).unwrap();
        let (token, ca) = operator::init(&config, Seams::default()).await.unwrap();
        let shutdown = CancellationToken::new();
        let running = controller::start(config, Seams::default(), shutdown.clone()).await.unwrap();
        let url = format!("https://{listen}");
        let operator = Operator::new(url.clone(), &ca, token).unwrap();
        Self { home, url, ca, operator, shutdown, running }
    }

    /// What the program says to these words, with this on its standard input.
    async fn run(&self, words: &str, input: &str) -> Said {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().unwrap().parent().unwrap().join("rackhand");
        assert!(program.is_file(), "{} is not there: run `cargo build --workspace --bins` first", program.display());
        let mut command = Command::new(program);
        command.args(words.split(' ')).current_dir(self.home.path()).env("HOME", self.home.path());
        command.env("RACKHAND_CONTROLLER", &self.url).env("RACKHAND_TOKEN", self.operator.token());
        command.env("RACKHAND_CA", &self.ca).env_remove("RACKHAND_CONTEXT").env_remove("XDG_CONFIG_HOME");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let input = input.to_owned();
        let output = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let output = output.await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { is_success: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The same for what does what it should.
    async fn done(&self, words: &str, input: &str) -> String {
        let said = self.run(words, input).await;
        assert!(said.is_success, "rackhand {words}: {}{}", said.out, said.err);
        said.out
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.running.ended().await.unwrap();
    }
}

/// The example of the documentation: all YAML blocks of its page.
fn documented() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/operator/declarative.md");
    let page = fs::read_to_string(page).unwrap();
    let blocks: Vec<_> = page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() > 1);
    blocks.join("---\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_documented_is_made_once_and_is_exported_as_it_was_declared() {
    let bench = Bench::new().await;
    bench.write("all.yaml", &documented());
    let tried = bench.done("apply -f all.yaml --dry-run", "").await;
    assert!(tried.contains("create rack ") && tried.contains("to create"), "{tried}");
    assert_eq!(bench.operator.get("/v1/racks").await.unwrap()["items"], json!([]));
    let made = bench.done("apply -f all.yaml", "").await;
    assert!(made.contains("created binding "), "{made}");
    let again = bench.done("apply -f all.yaml", "").await;
    assert!(again.starts_with("nothing to do"), "{again}");

    // All there is, in both forms, is a file that changes nothing here and makes the same elsewhere.
    let exported = bench.done("export", "").await;
    assert!(bench.done("apply -f -", &exported).await.starts_with("nothing to do"));
    let json = bench.done("export --output json", "").await;
    assert!(bench.done("apply -f -", &json).await.starts_with("nothing to do"));
    let other = Bench::new().await;
    other.done("apply -f -", &exported).await;
    assert_eq!(other.done("export", "").await, exported);
    let third = Bench::new().await;
    third.write("all.json", &json);
    third.done("apply -f all.json", "").await;
    assert_eq!(third.done("export", "").await, exported);

    let some = bench.done("export --output name site plan", "").await;
    assert!(some.lines().all(|line| line.starts_with("site ") || line.starts_with("plan ")), "{some}");
    for bench in [bench, other, third] {
        bench.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_differs_is_changed_and_only_what_may_be_removed() {
    let bench = Bench::new().await;
    let before = "\
site: [{name: fra1}, {name: old}]
---
aggregate: {prefix: 10.0.0.0/8, source: private}
pool: {name: p4, kind: private, prefixes: [10.9.0.0/24], purpose: for a test}
---
plan: {name: large, rules: {threads: 2}}
";
    bench.done("apply -f -", before).await;
    bench.write("new/a.yaml", "site: {name: fra1}\n");
    bench.write("new/b.toml", "[pool]\nname = 'p4'\nkind = 'private'\nprefixes = ['10.9.0.0/24', '10.9.1.0/24']\n");
    bench.write("new/c.json", r#"{"plan": {"name": "large", "description": "databases", "rules": {"threads": 2}}}"#);
    bench.write("new/readme.txt", "not one of them");
    let said = bench.done("apply -f new", "").await;
    expect![[r#"
        unchanged site fra1
        change pool p4  (new/b.toml, document 1)
            name: p4
            kind: private
            vrf: default
            quarantine_minutes: 1440
            purpose: for a test
            prefixes:
            - 10.9.0.0/24
          + - 10.9.1.0/24
            grants:
            - to: everyone
              may:
              - assign
              - reverse
        change plan large  (new/c.json, document 1)
            name: large
          - description: ""
          + description: databases
            rules:
              threads: 2
        2 to change, 1 unchanged
        changed pool p4
        changed plan large
        2 done
    "#]]
    .assert_eq(&said);
    let pool = bench.operator.get("/v1/pools/p4").await.unwrap();
    assert_eq!((&pool["purpose"], &pool["prefixes"][1]), (&json!("for a test"), &json!("10.9.1.0/24")));

    // Without a word of it nothing is removed, and a program has to say that it means it.
    assert!(bench.done("apply -f new", "").await.starts_with("nothing to do"));
    let said = bench.run("apply -f new --prune", "").await;
    assert!(!said.is_success && said.err.contains("Say --yes"), "{}{}", said.out, said.err);
    assert_eq!(bench.operator.get("/v1/sites/old").await.unwrap()["name"], "old");
    let said = bench.done("apply -f new --prune --yes", "").await;
    expect![[r#"
        unchanged site fra1
        unchanged pool p4
        unchanged plan large
        left site default: racks stand there of which nothing else is said
        remove site old
          - name: old
        1 to remove, 3 unchanged
        removed site old
        1 done
    "#]]
    .assert_eq(&said);
    assert!(bench.operator.get("/v1/sites/old").await.is_err());
    // What no file names the kind of is left alone.
    assert_eq!(bench.operator.get("/v1/aggregates").await.unwrap()["items"].as_array().unwrap().len(), 1);

    // Whoever acts is not removed, nor their roles.
    let me = "person: {name: ada}\nbinding: {person: ada, role: viewer, scope: {kind: everything}}\n";
    let said = bench.done("apply -f - --prune --yes", me).await;
    assert!(said.contains("left person admin: it is you"), "{said}");
    bench.done("apply -f - --prune --yes", me).await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_with_its_place_and_the_rest_goes_on() {
    let bench = Bench::new().await;
    bench.write(
        "all.yaml",
        "\
site: {name: fra1}
---
# Nobody may use it before somebody has looked at the proof.
aggregate:
  prefix: 203.0.113.0/24
  source: {customer: {name: shop, proof: {kind: roa, reference: AS64500}}}
pool: {name: theirs, kind: public, prefixes: [203.0.113.0/25]}
---
organisation: {name: No Such Name}
project: {name: shop, organisation: No Such Name}
---
plan: {name: large, rules: {threads: 2}}
",
    );
    let said = bench.run("apply -f all.yaml", "").await;
    assert!(!said.is_success);
    expect![[r#"
        failed: organisation No Such Name (all.yaml, document 3): A field is not acceptable
          /name: begins with a lower-case letter or digit, continues with those, `.`, `-` or `_`, is at most 63 long and no UUID
        not tried: project No Such Name:shop (all.yaml, document 3): it needs organisation No Such Name
        failed: pool theirs (all.yaml, document 2): The present state does not permit this
          203.0.113.0/24 is a customer's, and nobody has verified that we may use it; look at the proof, then `rackhand aggregate prove` it
        error: not all is as declared: 3 failed or were not tried; put that right and run it again
    "#]].assert_eq(&said.err);
    assert_eq!(bench.operator.get("/v1/plans/large").await.unwrap()["name"], "large");
    let said = bench.run("apply -f all.yaml --output json", "").await;
    assert!(!said.is_success);
    let told: Value = serde_json::from_str(&said.out).unwrap();
    let lines: Vec<_> = told
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {} {} {}", one["kind"], one["action"], one["result"], one["document"]))
        .collect();
    expect![[r#"
        [
            "\"site\" \"unchanged\" null 1",
            "\"organisation\" \"create\" \"failed\" 3",
            "\"project\" \"create\" \"not tried\" 3",
            "\"aggregate\" \"unchanged\" null 2",
            "\"pool\" \"create\" \"failed\" 2",
            "\"plan\" \"unchanged\" null 4",
        ]
    "#]]
    .assert_debug_eq(&lines);

    // What is not understood changes nothing.
    for (text, wanted) in [
        ("site: {name: a}\n---\nsite:\n  name: b\n  colour: red\n", "standard input, document 2: "),
        ("sight: {name: a}\n", "unknown field `sight`"),
        ("site: [{name: a}, {name: a}]\n", "site a is declared twice"),
        ("# nothing\n", "no object is declared there"),
    ] {
        let said = bench.run("apply -f -", text).await;
        assert!(!said.is_success && said.err.contains(wanted), "{}", said.err);
    }
    assert!(bench.operator.get("/v1/sites/a").await.is_err());

    // A rack's network stays as it is, and that is told before anything is asked for.
    let rack = "rack: {name: lab, network: {node: 10.77.0.1/24, delegated: [10.77.0.100, 10.77.0.199]}}\n";
    bench.done("apply -f -", rack).await;
    let said = bench.run("apply --dry-run -f -", &rack.replace("199", "150")).await;
    assert!(!said.is_success && said.out.contains("CANNOT CHANGE rack lab"), "{}{}", said.out, said.err);
    bench.end().await;
}
