//! Firmware updates and the tasks they become (DSP0268 UpdateService, Task; DSP0266
//! §"Asynchronous operations").

use std::time::Duration;

use bytes::Bytes;
use rackhand_common::firmware::Place;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::bmc::{BmcError, Image, Task};

use super::{
    Redfish, fault,
    http::{Payload, Reply},
    link::Link,
    resource::{Node, Resource},
    tree::action,
};

/// The longest time between two looks at a task.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// What a Task says. An answer that is no Task has no state: that is what a monitor answers once
/// everything is done.
pub fn task(node: Node<'_>) -> Task {
    let state = node.word("TaskState");
    let percent = node.count("PercentComplete").and_then(|percent| u8::try_from(percent).ok());
    match state {
        None => Task::Done,
        Some("Completed") if matches!(node.word("TaskStatus"), Some("Critical")) => Task::Failed(why(node)),
        Some("Completed") => Task::Done,
        Some("Exception" | "Killed" | "Cancelled" | "Interrupted") => Task::Failed(why(node)),
        Some(_) => Task::Running(percent),
    }
}

fn why(node: Node<'_>) -> String {
    let messages: Vec<String> =
        node.items("Messages").filter_map(|message| message.first_text(&["Message", "MessageId"])).take(4).collect();
    let words = if messages.is_empty() { fault::words(node, &[]) } else { crate::told::text(&messages.join("; ")) };
    words.or_else(|| node.text("TaskState")).unwrap_or_else(|| "no reason given".to_owned())
}

/// What stands before and behind the file in a form of the parameters and the file, which a multipart push
/// is (RFC 7578).
pub fn form(boundary: &str, targets: &[Link], name: &str) -> (Bytes, Bytes) {
    let targets: Vec<&str> = targets.iter().map(Link::as_str).collect();
    let parameters = if targets.is_empty() { json!({}) } else { json!({ "Targets": targets }) };
    let name: String = name.chars().filter(|c| c.is_ascii_graphic() && !"\"\\/".contains(*c)).collect();
    let head = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"UpdateParameters\"\r\n\
         Content-Type: application/json\r\n\r\n{parameters}\r\n\
         --{boundary}\r\nContent-Disposition: form-data; name=\"UpdateFile\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    (head.into(), format!("\r\n--{boundary}--\r\n").into())
}

impl Redfish {
    async fn update_service(&self) -> Result<Resource, BmcError> {
        let service = self.service().await?;
        let link = service.root.node().link("UpdateService");
        self.http.get(&link.ok_or_else(|| fault::unsupported("it cannot be updated"))?).await
    }

    /// Has the BMC fetch this image and update these targets, or those that the image is for.
    /// Gives the task that it becomes, if it becomes one.
    pub async fn update_from(&self, image: &str, targets: &[Link]) -> Result<Option<Link>, BmcError> {
        let updates = self.update_service().await?;
        let mut wanted = Map::new();
        wanted.insert("ImageURI".to_owned(), image.into());
        if let Some((scheme, _)) = image.split_once("://") {
            wanted.insert("TransferProtocol".to_owned(), scheme.to_ascii_uppercase().into());
        }
        if !targets.is_empty() {
            wanted.insert("Targets".to_owned(), targets.iter().map(|target| target.as_str()).collect());
        }
        let update = action(&updates, "UpdateService.SimpleUpdate");
        let reply = self.http.post(&update, Payload::Json(Value::Object(wanted))).await?;
        Ok(monitor(&reply))
    }

    /// Sends this image and has its targets updated, or those that the file is for. A service that
    /// takes bare bytes only is not told any targets.
    pub async fn update_with(&self, image: &Image) -> Result<Option<Link>, BmcError> {
        let targets = image.targets.iter().map(|target| {
            Link::parse(target).ok_or_else(|| fault::refused(format!("{target:?} is no link to update")))
        });
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let updates = self.update_service().await?;
        let node = updates.node();
        let place = |member| node.word(member).and_then(Link::parse);
        let file = |kind, head, tail| Payload::File { kind, head, path: image.path.clone(), size: image.size, tail };
        let reply = if let Some(multipart) = place("MultipartHttpPushUri") {
            let boundary = format!("rackhand-{}", uuid::Uuid::new_v4().simple());
            let (head, tail) = form(&boundary, &targets, &image.name);
            self.http.post(&multipart, file(format!("multipart/form-data; boundary={boundary}"), head, tail)).await?
        } else if let Some(push) = place("HttpPushUri").filter(|_| targets.is_empty()) {
            let bare = file("application/octet-stream".to_owned(), Bytes::new(), Bytes::new());
            self.http.post(&push, bare).await?
        } else {
            return Err(fault::unsupported("it takes no image"));
        };
        Ok(monitor(&reply))
    }

    /// The version of firmware as it is told now; `None` when there is none of that, or it does not tell.
    pub(super) async fn version_of(&self, place: &Place) -> Result<Option<String>, BmcError> {
        match place {
            Place::Bmc => Ok(self.read_identity().await?.firmware),
            Place::Bios => Ok(self.system().await?.node().text("BiosVersion")),
            // Its installer reads these.
            Place::Parts(_) => Ok(None),
            Place::Inventory(id) => {
                let updates = self.update_service().await?;
                let service = self.service().await?;
                let mut walk = self.walk(&service);
                let members = walk.members_at(updates.node(), "FirmwareInventory").await?;
                let is_it = |node: Node<'_>| node.word("Id") == Some(id.as_str());
                Ok(members.iter().map(Resource::node).find(|node| is_it(*node)).and_then(|node| node.text("Version")))
            }
        }
    }

    /// How a task is going.
    pub async fn task(&self, link: &Link) -> Result<Task, BmcError> {
        self.look(link).await.map(|(task, _)| task)
    }

    /// Waits until a task has ended, and fails as it failed. A BMC that restarts on the way is
    /// waited for, as long as the task may take.
    pub async fn wait_for(&self, link: &Link) -> Result<(), BmcError> {
        let bounds = *self.http.bounds();
        let end = Instant::now() + bounds.task;
        loop {
            let (last, pause) = match self.look(link).await {
                Ok((Task::Done, _)) => return Ok(()),
                Ok((Task::Failed(why), _)) => return Err(fault::refused(format!("{link}: {why}"))),
                Ok((running, pause)) => (format!("{running:?}"), pause),
                Err(error @ BmcError::Unreachable(_)) => (error.to_string(), None),
                Err(error) => return Err(error),
            };
            if Instant::now() >= end {
                return Err(fault::unreachable(format!("{link} has not ended in time: {last}")));
            }
            sleep(pause.unwrap_or(bounds.settle).min(LONGEST_LOOK)).await;
        }
    }

    async fn look(&self, link: &Link) -> Result<(Task, Option<Duration>), BmcError> {
        let Reply { status, body, retry_after, .. } = self.http.monitor(link).await?;
        let task = match task(Node(Some(&body))) {
            // A monitor answers 202 with any body as long as the task goes on.
            Task::Done if status.as_u16() == 202 && body.get("TaskState").is_none() => Task::Running(None),
            task => task,
        };
        Ok((task, retry_after))
    }
}

fn monitor(reply: &Reply) -> Option<Link> {
    let body = Node(Some(&reply.body));
    let named = body.word("TaskMonitor").and_then(Link::parse);
    reply.location.clone().or(named).or_else(|| body.word("TaskState").and(body.target()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::resource::tests::any_json, *};

    #[test]
    fn a_task_ends_done_or_failed() {
        let told = [
            json!({"TaskState": "Running", "PercentComplete": 40}),
            json!({"TaskState": "Completed", "TaskStatus": "OK"}),
            json!({"TaskState": "Completed", "TaskStatus": "Critical"}),
            json!({"TaskState": "Exception", "Messages": [{"Message": "Image is not signed"}, 3]}),
            json!({"TaskState": 5}),
        ];
        let tasks: Vec<Task> = told.iter().map(|told| task(Node(Some(told)))).collect();
        let failed = |why: &str| Task::Failed(why.to_owned());
        assert_eq!(
            tasks,
            [Task::Running(Some(40)), Task::Done, failed("Completed"), failed("Image is not signed"), Task::Done]
        );
    }

    #[test]
    fn a_form_has_its_parameters_before_its_file() {
        let targets = [Link::parse("/redfish/v1/UpdateService/FirmwareInventory/BMC").unwrap()];
        let (head, tail) = form("b", &targets, "a\"\r\nX: 1.bin");
        let text = String::from_utf8(head.to_vec()).unwrap();
        assert!(text.starts_with("--b\r\n") && text.ends_with("octet-stream\r\n\r\n"), "{text}");
        assert!(text.contains("filename=\"aX:1.bin\""), "{text}");
        assert_eq!(tail, "\r\n--b--\r\n");
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(json in any_json()) {
            task(Node(Some(&json)));
        }
    }
}
