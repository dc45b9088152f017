//! Firmware updates and the tasks they become (DSP0268 UpdateService, Task; DSP0266
//! §"Asynchronous operations").

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use crate::bmc::BmcError;

use super::{
    Redfish, fault,
    http::{Payload, Reply},
    link::Link,
    resource::{Node, Resource},
    tree::action,
};

/// The longest time between two looks at a task.
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// How a task is going.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// It goes on, at so many percent.
    Running(Option<u8>),
    /// It has done what it should.
    Done,
    /// It has ended otherwise, for this reason.
    Failed(String),
}

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

/// A form of the parameters and the file that a multipart push is (RFC 7578).
pub fn form(boundary: &str, targets: &[Link], name: &str, image: &Bytes) -> Bytes {
    let targets: Vec<&str> = targets.iter().map(Link::as_str).collect();
    let parameters = if targets.is_empty() { json!({}) } else { json!({ "Targets": targets }) };
    let name: String = name.chars().filter(|c| c.is_ascii_graphic() && !"\"\\/".contains(*c)).collect();
    let mut form = BytesMut::with_capacity(image.len() + 1024);
    form.put_slice(
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"UpdateParameters\"\r\n\
             Content-Type: application/json\r\n\r\n{parameters}\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"UpdateFile\"; filename=\"{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .as_bytes(),
    );
    form.put_slice(image);
    form.put_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    form.freeze()
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

    /// Sends this image and has these targets updated, or those that the image is for. A service
    /// that takes bare bytes only is not told any targets.
    pub async fn update_with(&self, name: &str, image: Bytes, targets: &[Link]) -> Result<Option<Link>, BmcError> {
        let updates = self.update_service().await?;
        let node = updates.node();
        let place = |member| node.word(member).and_then(Link::parse);
        let reply = if let Some(multipart) = place("MultipartHttpPushUri") {
            let boundary = format!("rackhand-{}", uuid::Uuid::new_v4().simple());
            let form = form(&boundary, targets, name, &image);
            self.http.post(&multipart, Payload::Form(boundary, form)).await?
        } else if let Some(push) = place("HttpPushUri").filter(|_| targets.is_empty()) {
            self.http.post(&push, Payload::Bytes("application/octet-stream", image)).await?
        } else {
            return Err(fault::unsupported("it takes no image"));
        };
        Ok(monitor(&reply))
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
        let form = form("b", &targets, "a\"\r\nX: 1.bin", &Bytes::from_static(b"\x7fELF"));
        let text = String::from_utf8(form.to_vec()).unwrap();
        assert!(text.starts_with("--b\r\n") && text.ends_with("\x7fELF\r\n--b--\r\n"), "{text}");
        assert!(text.contains("filename=\"aX:1.bin\""), "{text}");
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(json in any_json()) {
            task(Node(Some(&json)));
        }
    }
}
