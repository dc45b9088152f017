use rackhand_common::{
    id::{Epoch, MachineId, RackId},
    intent::{Boot, Intent, MachineIntent, Network},
};

pub(crate) fn known(n: u128) -> MachineId {
    MachineId(uuid(n))
}

fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(n)
}

pub(crate) fn intent() -> Intent {
    Intent {
        revision: 1,
        rack: RackId(uuid(1)),
        name: "r1".into(),
        network: Network {
            node: "10.0.0.1/24".parse().unwrap(),
            gateway: Some("10.0.0.1".parse().unwrap()),
            dns: vec!["10.0.0.2".parse().unwrap()],
            delegated: ("10.0.0.9".parse().unwrap(), "10.0.0.11".parse().unwrap()),
        },
        machines: vec![MachineIntent {
            id: known(1),
            name: "m1".into(),
            macs: vec!["52:54:00:00:00:6d".parse().unwrap(), "52:54:00:00:01:6d".parse().unwrap()],
            address: "10.0.0.50".parse().unwrap(),
            epoch: Epoch(1),
            boot: Boot::Installer,
            order: None,
        }],
    }
}
