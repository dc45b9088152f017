use expect_test::{Expect, expect};
use rackhand_common::pki::install_crypto;

use super::*;

fn config(text: &str) -> Result<Config, String> {
    toml::from_str::<File>(text).map_err(|error| error.to_string()).and_then(Config::try_from)
}

fn here(dir: &Path) -> Config {
    let text = format!(
        "data = {:?}\nnames = [\"127.0.0.1\"]\n[api]\nlisten = \"127.0.0.1:0\"\n[agents]\nlisten = \"127.0.0.1:0\"\n",
        dir.join("data")
    );
    config(&text).unwrap()
}

#[test]
fn a_configuration_is_checked_and_mistakes_are_named() {
    #[track_caller]
    fn check(text: &str, expected: Expect) {
        expected.assert_eq(config(text).err().unwrap_or_default().trim_end());
    }
    check("names = [\"rackhand.example.net\", \"::1\"]", expect![""]);
    check(
        "",
        expect![[
            r#"names is empty: list the DNS names or addresses under which operators and agents reach this controller, the agents' first, such as names = ["rackhand.example.net"]"#
        ]],
    );
    check(
        "names = [\"a:8443\"]",
        expect!["names: `a:8443` is neither a DNS name nor an address; a port does not belong here"],
    );
    check(
        "names = [\"a\"]\n[database]\nurl = \"postgresql://rackhand:secret@db/rackhand\"",
        expect![
            "database.url: it has the password in it: write that into a file of its own, and its path into `password_file`"
        ],
    );
    check("names = [\"a\"]\n[agents]\naddress = \"balancer\"", expect!["agents.address: `balancer` is not HOST:PORT"]);
    check(
        "name = \"a\"",
        expect![[r#"
            TOML parse error at line 1, column 1
              |
            1 | name = "a"
              | ^^^^
            unknown field `name`, expected one of `data`, `names`, `database`, `api`, `agents`, `ssh`, `images`, `oidc`, `webhooks`, `log`"#]],
    );
}

#[test]
fn agents_are_told_the_first_name_and_the_real_port() {
    #[track_caller]
    fn check(text: &str, expected: Expect) {
        expected.assert_eq(&config(text).unwrap().told_to_agents(4433));
    }
    check("names = [\"a.example\", \"b.example\"]", expect!["a.example:4433"]);
    check("names = [\"2001:db8::1\"]", expect!["[2001:db8::1]:4433"]);
    check("names = [\"a\"]\n[agents]\naddress = \"balancer:1\"", expect!["balancer:1"]);
}

#[tokio::test]
async fn init_happens_once_and_goes_on_after_an_interruption() {
    install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let config = here(dir.path());
    let early = start(config.clone(), Seams::default(), CancellationToken::new()).await.unwrap_err();
    assert!(early.to_string().contains("run `rackhand-controller init` first"), "{early:#}");

    // The token could not be printed: it never counted.
    init(&config, Seams::default(), |_, _| bail!("no paper")).await.unwrap_err();
    let root = fs::read(config.pki().join("ca.pem")).unwrap();
    let mut told = String::new();
    init(&config, Seams::default(), |token, ca| {
        assert!(ca.exists());
        told = token.to_owned();
        Ok(())
    })
    .await
    .unwrap();
    assert!(told.starts_with("rh_"));
    assert_eq!(fs::read(config.pki().join("ca.pem")).unwrap(), root);

    let again = init(&config, Seams::default(), |_, _| panic!("a second token")).await.unwrap_err();
    assert!(again.to_string().contains("nothing was changed"), "{again:#}");
}

#[tokio::test]
async fn a_controller_serves_its_health_and_stops_in_order() {
    install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let config = here(dir.path());
    init(&config, Seams::default(), |_, _| Ok(())).await.unwrap();
    let shutdown = CancellationToken::new();
    let running = start(config.clone(), Seams::default(), shutdown.clone()).await.unwrap();
    assert_eq!(running.telemetry.unready().await, None);

    let second = start(config.clone(), Seams::default(), CancellationToken::new()).await.unwrap_err();
    assert!(second.to_string().contains("another controller runs"), "{second:#}");

    let telemetry = running.telemetry.clone();
    shutdown.cancel();
    assert_eq!(telemetry.unready().await, Some("stopping"));
    running.ended().await.unwrap();

    let shutdown = CancellationToken::new();
    let running = start(config, Seams::default(), shutdown.clone()).await.unwrap();
    shutdown.cancel();
    running.ended().await.unwrap();
}
