//! A large estate: 1,000 racks of 40 machines, a million addresses, five million events.

use std::{net::Ipv4Addr, path::Path, sync::Arc};

use anyhow::Result;
use jiff::Timestamp;
use rackhand_common::{
    event::{Stage, What},
    id::{Epoch, MachineId, RackId},
    intent::{Boot, Network},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Nic, System},
};
use rackhand_controller::{
    seal_key,
    store::{DEFAULT_SITE, Happened, ImageVersion, Machine, SoundNetwork, Store},
};
use rackhand_controller_core::lifecycle::Lifecycle;
use rackhand_tests::operator::Operator;
use serde_json::json;

use crate::served::Served;

const RACKS: u32 = 1000;
const EACH: u32 = 40;
const EVENTS: u64 = 5_000_000;

/// Every twentieth address of a pool of a million is free.
const ADDRESSES: &str = "10.0.0.0/12";
const FREE: u64 = 20;

/// The pool of all addresses.
pub(crate) const POOL: &str = "estate";

/// The image that machines are deployed with.
pub(crate) const IMAGE: &str = "estate";

/// Name of a machine's rack.
pub(crate) fn rack(machine: u32) -> String {
    format!("r{:04}", machine / EACH)
}

/// Name of a machine.
pub(crate) fn name(machine: u32) -> String {
    format!("m{machine:05}")
}

/// A machine's first card.
pub(crate) fn mac(machine: u32) -> Mac {
    let [a, b, c, d] = machine.to_be_bytes();
    Mac([0x52, 0x54, a, b, c, d])
}

/// Fills a controller's database, which must not be served yet; how many machines there are.
pub(crate) async fn make(served: &Served) -> Result<u32> {
    let store = Store::open(served.config.place()?, seal_key::seal(&served.config.pki())?).await?;
    store.fill(&store.pool(POOL).await?, 32, FREE).await?;
    let now = Timestamp::now();
    for rack_number in 0..RACKS {
        let mut tx = store.begin().await?;
        let rack =
            tx.insert_rack(now, &rack(rack_number * EACH), DEFAULT_SITE, &SoundNetwork::try_from(network())?).await?;
        for slot in 0..EACH {
            let number = rack_number * EACH + slot;
            let machine = machine(number, slot, now);
            let id = machine.id;
            tx.insert_machine(&Machine { rack, ..machine }).await?;
            for event in 0..8 {
                let body = match event {
                    0 => Happened::Discovered { name: name(number) },
                    1 => Happened::Adopted,
                    _ => Happened::Told(What::Stage(Stage::Script("the disk's system".into()))),
                };
                tx.insert_event(now, rack, Some(id), None, &body).await?;
            }
        }
        tx.commit().await?;
    }
    store.repeat_events(EVENTS).await?;
    store.close().await;
    Ok(RACKS * EACH)
}

fn network() -> Network {
    Network {
        node: "10.77.0.1/24".parse().expect("a network"),
        gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
        dns: vec![Ipv4Addr::new(10, 77, 0, 53)],
        delegated: (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 199)),
    }
}

/// A server with two cards and two disks; nine in ten are ready, the others run a system.
fn machine(number: u32, slot: u32, now: Timestamp) -> Machine {
    let [_, rest @ ..] = mac(number).0;
    let [b, c, d, e, f] = rest;
    let second = Mac([0x56, b, c, d, e, f]);
    let disk = |place: u32| Disk {
        name: format!("nvme{place}n1"),
        model: "SAMSUNG MZQL23T8HCLS-00A07".into(),
        serial: format!("S64HNE0R{number:06}{place}"),
        wwn: Some(format!("eui.36344830525{number:06}{place}")),
        size: 3_840_755_982_336,
        sector: 512,
        rotational: false,
        content: Content::Blank,
    };
    let card = |name: &str, mac| Nic { name: name.into(), mac, driver: "mlx5_core".into(), link: true };
    let inventory = Arc::new(Inventory {
        firmware: Firmware::Uefi,
        system: System {
            vendor: "Supermicro".into(),
            product: "SYS-1029U-TN10RT".into(),
            serial: format!("E{number:011}"),
            uuid: None,
        },
        cpu: Cpu { model: "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz".into(), threads: 80 },
        memory: 384 << 30,
        nics: vec![card("eth0", mac(number)), card("eth1", second)],
        disks: vec![disk(0), disk(1)],
    });
    let is_ready = !number.is_multiple_of(10);
    Machine {
        id: MachineId::fresh(),
        rack: RackId::fresh(),
        name: name(number),
        lifecycle: if is_ready { Lifecycle::Ready } else { Lifecycle::Active },
        epoch: Epoch(1),
        boot: if is_ready { Boot::Installer } else { Boot::Disk },
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 100)) + slot),
        macs: vec![mac(number), second],
        accepted: Some(inventory.clone()),
        inventory,
        connection: 0,
        connected: is_ready,
        power: None,
        stage: None,
        stage_event: 0,
        power_event: 0,
        order: None,
        project: None,
        image: (!is_ready).then(|| ImageVersion { name: IMAGE.to_owned(), version: 1 }),
        alert: None,
        held: None,
        uninspected: None,
        rescue: None,
        created: now,
        updated: now,
        version: 1,
    }
}

/// What the API makes: an image to deploy, and an empty pool for a million addresses.
pub(crate) async fn begin(operator: &Operator, dir: &Path) -> Result<()> {
    operator.post("/v1/aggregates", json!({"prefix": ADDRESSES, "source": "private"})).await?;
    let pool = json!({"name": POOL, "kind": "private", "prefixes": [ADDRESSES], "quarantine_minutes": 0});
    operator.post("/v1/pools", pool).await?;
    let raw = rackhand_tests::image::make(&dir.join("image.raw"), 3)?;
    operator.import(IMAGE, raw).await.map(drop)
}
