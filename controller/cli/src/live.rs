//! The objects that a controller has, as files declare them.

use serde_json::Value;

use crate::{
    client::{Client, Problem},
    declared::{Kind, Live, Object},
};

/// Why a role stays that nobody granted.
pub(crate) const DERIVED: &str = "it follows from a group of who vouches for them";

/// Why a pool stays that nobody made.
pub(crate) const CARVED: &str = "it is a project's part of another pool";

/// All objects of these kinds that may be seen.
pub(crate) async fn read(client: &Client, kinds: &[Kind]) -> anyhow::Result<Vec<Live>> {
    let mut all = Vec::new();
    for kind in kinds {
        all.extend(of_kind(client, *kind).await?);
    }
    Ok(all)
}

pub(crate) async fn of_kind(client: &Client, kind: Kind) -> anyhow::Result<Vec<Live>> {
    let mut myself = String::new();
    if matches!(kind, Kind::Person | Kind::Binding) {
        let who: Value = client.get("/v1/whoami").await?;
        myself = text(&who, "name");
    }
    let mut all = Vec::new();
    for answer in client.list(kind.path()).await? {
        let stays = match kind {
            Kind::Site if text(&answer, "name") == "default" => Some("racks stand there of which nothing else is said"),
            Kind::Person if text(&answer, "name") == myself => Some("it is you"),
            Kind::Binding if text(&answer, "person") == myself => Some("it is a role of your own"),
            Kind::Binding if answer["granted_by"].is_null() => Some(DERIVED),
            Kind::Pool if !answer["project"].is_null() => Some(CARVED),
            _ => None,
        };
        let id = if kind == Kind::Vrf { text(&answer, "name") } else { text(&answer, "id") };
        let object = Object::of_answer(kind, &answer)?;
        all.push(Live { object, path: format!("{}/{id}", kind.path()), tag: None, stays });
    }
    Ok(all)
}

/// Reads one again by itself, with the tag of its version; one that is gone stays as it was.
pub(crate) async fn again(client: &Client, live: &mut Live) -> anyhow::Result<()> {
    let kind = live.object.kind();
    match client.tagged(&live.path).await {
        Ok((answer, tag)) => {
            live.object = Object::of_answer(kind, &answer)?;
            live.tag = tag;
            Ok(())
        }
        // What is asked for of it then is refused.
        Err(error) if error.downcast_ref::<Problem>().is_some_and(|problem| problem.kind.ends_with(":not-found")) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn text(answer: &Value, field: &str) -> String {
    answer[field].as_str().unwrap_or_default().to_owned()
}
