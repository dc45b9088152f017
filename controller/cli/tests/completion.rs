//! Completion as a person meets it: a real bash, zsh and fish, the program's own scripts, and a controller.

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

/// A shell of somebody with this home, that finds the program; what it printed, nothing on its standard error.
async fn printed(shell: &str, arguments: &[&str], home: &Path) -> Vec<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_rackhand")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(shell);
    command.args(arguments).env("HOME", home).env("PATH", path).env("TERM", "dumb");
    for name in ["XDG_CONFIG_HOME", "XDG_CACHE_HOME", "ZDOTDIR"] {
        command.env_remove(name);
    }
    for name in ["RACKHAND_CONTEXT", "RACKHAND_CONTROLLER", "RACKHAND_TOKEN", "RACKHAND_CA"] {
        command.env_remove(name);
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{shell}");
    String::from_utf8(output.stdout).unwrap().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// What bash proposes behind these words.
async fn proposed(home: &Path, words: &[&str]) -> Vec<String> {
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source <(rackhand completion bash)
        COMP_WORDS=(rackhand {}); COMP_CWORD={}
        function=$(complete -p rackhand | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function rackhand \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"
        printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words.len()
    );
    printed("bash", &["--norc", "-c", &script], home).await
}

/// A home whose owner is logged in to a controller that answers, and to one that does not.
async fn home() -> tempfile::TempDir {
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
    home
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_bash_proposes_the_names_a_controller_has() {
    let home = home().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_real_fish_proposes_them() {
    let home = home().await;
    let proposed = async |line: &str| {
        let script = format!("rackhand completion fish | source; complete -C '{line}'");
        printed("fish", &["--no-config", "-c", &script], home.path()).await
    };
    assert_eq!(proposed("rackhand machine show we").await, ["web-1", "web-2"]);
    assert_eq!(proposed("rackhand context use ").await, ["gone", "home"]);
    assert_eq!(proposed("rackhand machine depl").await, ["deploy\tInstall an operating system"]);
    let options = proposed("rackhand machine show --w").await;
    assert!(options.iter().any(|option| option.starts_with("--watch\t")), "{options:?}");
}

/// An interactive zsh on a terminal of its own, at which keys are pressed: for each argument what it
/// has become after Tab.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z 'PS1=; PS2=; stty -echo; autoload -Uz compinit; compinit -D -u; source <(rackhand completion zsh)
show() { print -r -- "<""<$BUFFER>>"; BUFFER= }; zle -N show; bindkey "^I" complete-word; bindkey "^X" show
print -r -- "<""<ready>>"'
zpty -r -m z line '*<<ready>>*'
for typed in "$@"; do
    zpty -w -n z "$typed"$'\t'$'\x18'
    zpty -r -m z line '*<<*>>*'
    print -r -- "${${line##*<<}%%>>*}"
done
zpty -d z
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_zsh_completes_them() {
    let home = home().await;
    let typed = [
        "rackhand machine show we",
        "rackhand machine merge x --into d",
        "rackhand context use g",
        "rackhand machine depl",
        "rackhand machine show --wat",
    ];
    let arguments = [&["-f", "-c", ZSH, "zsh"], &typed[..]].concat();
    let completed = printed("zsh", &arguments, home.path()).await;
    let expected = [
        "rackhand machine show web-",
        "rackhand machine merge x --into db-1 ",
        "rackhand context use gone ",
        "rackhand machine deploy ",
        "rackhand machine show --watch ",
    ];
    assert_eq!(completed, expected);
}
