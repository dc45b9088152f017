//! Metrics as Prometheus itself finds them.

use std::process::Stdio;

use rackhand_tests::{VirtualRack, operator::PATIENCE, rack::Service, wait};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_finds_the_racks_nodes_and_scrapes_them_with_a_token_for_that_alone() {
    let mut rack = VirtualRack::new().await;
    let made = json!({ "name": "prometheus", "actions": ["agent.read"], "days": 365 });
    let made = rack.operator.post("/v1/tokens", made).await.unwrap();
    std::fs::write(rack.path("token"), made["secret"].as_str().unwrap()).unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: rackhand\n  http_sd_configs:\n  - url: {}/v1/prometheus/targets\n    \
         refresh_interval: 1s\n    authorization: {{type: Bearer, credentials_file: {:?}}}\n    tls_config: {{ca_file: {:?}}}\n",
        rack.operator.url(),
        rack.path("token"),
        rack.path("controller/pki/ca.pem"),
    );
    let file = rack.path("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    let at = format!("{}:9090", rack.host(1));
    let _prometheus = tokio::process::Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", rack.path("prometheus").display()))
        .arg(format!("--web.listen-address={at}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("install prometheus");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |path: &str| -> Result<Value, String> {
        let asked = client.get(format!("http://{at}/api/v1/{path}")).send().await.map_err(|error| error.to_string())?;
        asked.json().await.map_err(|error| error.to_string())
    };
    let scraped = async || {
        let found = ask("targets").await?;
        let target = &found["data"]["activeTargets"][0];
        let is_up =
            target["health"] == "up" && target["labels"]["rack"] == "r1" && target["labels"]["site"] == "default";
        if is_up { Ok(()) } else { Err(found.to_string()) }
    };
    wait::until("the node is found and scraped", PATIENCE, scraped).await;
    let counted = async || {
        let found = ask("query?query=rackhand_agent_uplink_connected").await?;
        let series = &found["data"]["result"][0];
        let is_there = series["metric"]["rack"] == "r1" && series["value"][1] == "1";
        if is_there { Ok(()) } else { Err(found.to_string()) }
    };
    wait::until("its metrics are there", PATIENCE, counted).await;

    // One that is away is a target that is down, and not one that is not there.
    rack.kill(Service::Agent).await;
    let down = async || {
        let found = ask("targets").await?;
        if found["data"]["activeTargets"][0]["health"] == "down" { Ok(()) } else { Err(found.to_string()) }
    };
    wait::until("its absence is seen", PATIENCE, down).await;
    rack.stop().await.unwrap();
}
