//! Completion as a person meets it: a real bash, the program's own script, and a controller.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{path::Path, process::Command, sync::Arc};

use rackhand_common::pki;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// Answers everything with two machines; its address and its CA.
async fn controller() -> (String, String) {
    pki::install_crypto();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder().with_no_client_auth();
    let tls = TlsAcceptor::from(Arc::new(tls.with_single_cert(vec![made.cert.der().clone()], key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        loop {
            let mut stream = tls.accept(listener.accept().await.unwrap().0).await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            let body = r#"{"items":[{"id":"1","name":"web-1"},{"id":"2","name":"web-2"},{"id":"3","name":"db-1"}]}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (address, made.cert.pem())
}

/// What bash proposes behind these words; nothing may be said on its standard error.
async fn proposed(home: &Path, words: &[&str]) -> Vec<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_rackhand")).parent().unwrap();
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "PATH={}:$PATH; source <(rackhand completion bash)
        COMP_WORDS=(rackhand {}); COMP_CWORD={}
        function=$(complete -p rackhand | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function rackhand \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"
        printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        program.display(),
        quoted.join(" "),
        words.len()
    );
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", &script]).env("HOME", home).env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME");
    for name in ["RACKHAND_CONTEXT", "RACKHAND_CONTROLLER", "RACKHAND_TOKEN", "RACKHAND_CA"] {
        bash.env_remove(name);
    }
    let output = tokio::task::spawn_blocking(move || bash.output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    String::from_utf8(output.stdout).unwrap().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_bash_proposes_the_names_a_controller_has() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join(".config/rackhand");
    std::fs::create_dir_all(&directory).unwrap();
    let (address, ca) = controller().await;
    let context = |name: &str, address: &str, ca: &str| {
        format!("[contexts.{name}]\ncontroller = \"{address}\"\ntoken = \"rh_x\"\nca = '''\n{ca}'''\n")
    };
    // Nobody listens at the second.
    let config = format!(
        "current = \"home\"\n{}{}",
        context("home", &address, &ca),
        context("gone", "https://localhost:1", &ca)
    );
    let file = directory.join("config.toml");
    std::fs::write(&file, config).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    assert_eq!(proposed(home.path(), &["machine", "show", "we"]).await, ["web-1", "web-2"]);
    assert_eq!(proposed(home.path(), &["machine", "merge", "x", "--into", "d"]).await, ["db-1"]);
    assert_eq!(proposed(home.path(), &["machine", "deploy", "--image", "=", "we"]).await, ["web-1", "web-2"]);
    assert_eq!(proposed(home.path(), &["context", "use", ""]).await, ["gone", "home"]);
    // Commands and options are proposed as ever, and so they are when no controller answers.
    assert_eq!(proposed(home.path(), &["machine", "depl"]).await, ["deploy"]);
    assert!(proposed(home.path(), &["machine", "show", "--w"]).await.contains(&"--watch".to_owned()));
    let started = std::time::Instant::now();
    assert_eq!(proposed(home.path(), &["--context", "gone", "machine", "show", "we"]).await, Vec::<String>::new());
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}
