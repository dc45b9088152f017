//! A controller of the next version, of which nothing is real but its certificate, and a real
//! agent of this one.

use std::time::Duration;

use rackhand_agent::intent;
use rackhand_common::{
    id::{CommandId, Epoch, MachineId, RackId},
    intent::{Intent, Network},
    wire::{self, Action, AgentRequest, AgentResponse, Command, ControllerRequest, ControllerResponse, Welcome},
};
use rackhand_controller::{authority::Authority, fleet};

use crate::bench::*;

/// The controller's end of a connection.
struct Served {
    quic: quinn::Connection,
    _endpoint: quinn::Endpoint,
}

impl Served {
    /// The next connection that an agent makes, welcomed.
    async fn next(controller: &Controller) -> Self {
        let authority = Authority::open(&controller.pki()).unwrap();
        let identity = authority.controller(&["127.0.0.1".to_owned()], ahead(0).now().wall).unwrap();
        let endpoint = fleet::listen(controller.agents, &authority, identity).unwrap();
        let quic = endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, mut receive) = quic.accept_bi().await.unwrap();
        let hello = wire::decode(&receive.read_to_end(wire::MAX_LEN).await.unwrap()).unwrap();
        let AgentRequest::Hello(hello) = hello else { panic!("{hello:?}") };
        let welcome = Welcome { connection: hello.connection + 1, next_event: 1 };
        send.write_all(&wire::encode(&AgentResponse::Welcome(welcome))).await.unwrap();
        send.finish().unwrap();
        // A stranger has credit for little.
        quic.set_max_concurrent_bi_streams(16u32.into());
        quic.set_receive_window((8u32 << 20).into());
        Self { quic, _endpoint: endpoint }
    }

    /// What the agent answers to these bytes.
    async fn ask_bytes(&self, request: &[u8]) -> ControllerResponse {
        let (mut send, mut receive) = self.quic.open_bi().await.unwrap();
        send.write_all(request).await.unwrap();
        send.finish().unwrap();
        wire::decode(&receive.read_to_end(wire::MAX_LEN).await.unwrap()).unwrap()
    }

    async fn ask(&self, request: &ControllerRequest) -> ControllerResponse {
        self.ask_bytes(&wire::encode(request)).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_tells_a_controller_of_the_next_version_what_it_does_not_understand_and_serves_it() {
    let mut controller = Controller::new(ahead(0)).await;
    let mut node = Node::enrolled(&controller, &controller.code().await).await;
    controller.stop().await;
    node.start(ahead(0)).await;
    let next = tokio::time::timeout(PATIENCE, Served::next(&controller)).await.expect("the agent connects");

    let rack: RackId = node.stored()["rack"].as_str().unwrap().parse().unwrap();
    let network = Network {
        node: "10.77.0.1/24".parse().unwrap(),
        gateway: None,
        dns: Vec::new(),
        delegated: ([10, 77, 0, 100].into(), [10, 77, 0, 199].into()),
    };
    let wanted = |revision| {
        let (name, network) = ("r1".to_owned(), network.clone());
        ControllerRequest::Intent(Intent { revision, rack, name, network, machines: Vec::new() })
    };
    assert_eq!(next.ask(&wanted(3)).await, ControllerResponse::Stored(3));

    // The codec writes a variant as its number, up to 250 as one byte.
    let request = vec![250, 4, b'f', b'a', b'n', b's'];
    let mut command = wire::encode(&ControllerRequest::Command(Command {
        id: CommandId::fresh(),
        machine: MachineId::fresh(),
        epoch: Epoch(1),
        within: Duration::from_secs(60),
        action: Action::PowerStatus,
    }));
    *command.last_mut().unwrap() = 250;
    for bytes in [request, command] {
        let answer = next.ask_bytes(&bytes).await;
        let ControllerResponse::NotUnderstood(reason) = &answer else { panic!("{answer:?}") };
        assert!(reason.contains("does not know"), "{reason}");
    }

    // Nothing was done, and what is understood is done on the same connection.
    let on_disk = intent::Store::open(&node.state()).unwrap();
    assert_eq!(on_disk.revision(), 3);
    assert_eq!(next.ask(&wanted(4)).await, ControllerResponse::Stored(4));
    let told = next.ask(&ControllerRequest::Report).await;
    assert!(matches!(&told, ControllerResponse::Reported(Some(intent)) if intent.revision == 4), "{told:?}");
    assert!(next.quic.close_reason().is_none(), "{:?}", next.quic.close_reason());
    node.connected().await;
    node.stop().await;
}
