//! Virtual media (DSP0268 VirtualMedia), below the system or its managers.
//!
//! Invariant: a medium counts as inserted or ejected when the BMC shows it so: several answer
//! well, and keep the old one.

use serde_json::{Map, Value, json};

use crate::{bmc::BmcError, told::text};

use super::{
    Redfish, fault,
    http::Payload,
    link::Link,
    resource::{Node, Resource},
    tree::action,
};

/// How often a change is read back.
const READS: u32 = 5;

/// One drive for virtual media.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualMedia {
    /// Where it is.
    pub link: Link,
    /// What the BMC calls it.
    pub name: String,
    /// What fits: "CD", "DVD", "USBStick".
    pub kinds: Vec<String>,
    /// The address of the medium in it.
    pub image: Option<String>,
    /// Whether there is a medium in it.
    pub is_inserted: bool,
}

impl VirtualMedia {
    /// Whether it takes images of CDs.
    pub fn is_cd(&self) -> bool {
        self.kinds.iter().any(|kind| kind == "CD" || kind == "DVD")
    }
}

/// What a drive says.
pub fn media(resource: &Resource) -> VirtualMedia {
    let node = resource.node();
    let image = node.text("Image").filter(|image| image != "None");
    VirtualMedia {
        link: resource.link.clone(),
        name: node.first_text(&["Name", "Id"]).unwrap_or_else(|| resource.link.name().to_owned()),
        kinds: node.words("MediaTypes").into_iter().filter_map(text).collect(),
        // Older services do not say whether it is inserted, only what.
        is_inserted: node.flag("Inserted").unwrap_or(image.is_some()),
        image,
    }
}

/// Whether the address in a drive is the one that was put there: some show it without what is
/// before or after its path.
fn is_image(shown: Option<&str>, wanted: &str) -> bool {
    shown.is_none_or(|shown| shown == wanted || wanted.ends_with(shown) || shown.ends_with(wanted))
}

fn has_action(node: Node<'_>, name: &str) -> bool {
    node.at("Actions").at(&format!("#{name}")).is_there()
}

impl Redfish {
    /// Every drive for virtual media, those of the system first.
    pub async fn virtual_media(&self) -> Result<Vec<VirtualMedia>, BmcError> {
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let mut drives = Vec::new();
        for owner in std::iter::once(&service.system).chain(&service.managers) {
            let Some(owner) = walk.read(owner).await? else { continue };
            drives.extend(walk.members_at(owner.node(), "VirtualMedia").await?.iter().map(media));
        }
        Ok(drives)
    }

    /// Has the image in a drive that nobody else uses.
    pub(super) async fn insert(&self, image: &str) -> Result<(), BmcError> {
        let mut drives: Vec<_> = self.virtual_media().await?.into_iter().filter(VirtualMedia::is_cd).collect();
        let has_it = |drive: &VirtualMedia| drive.image.as_deref() == Some(image);
        drives.sort_by_key(|drive| !has_it(drive));
        let Some(drive) = drives.iter().find(|drive| has_it(drive) || !drive.is_inserted) else {
            return Err(fault::unsupported(match drives.first() {
                Some(drive) => format!("its drive {} has another medium in it", drive.name),
                None => "it has no virtual drive for CDs".to_owned(),
            }));
        };
        self.insert_media(&drive.link, image).await
    }

    /// Has the image in no drive.
    pub(super) async fn eject(&self, image: &str) -> Result<(), BmcError> {
        for drive in self.virtual_media().await? {
            if drive.image.as_deref().is_some_and(|shown| is_image(Some(shown), image)) {
                self.eject_media(&drive.link).await?;
            }
        }
        Ok(())
    }

    /// Has the image at this address inserted, write-protected, and sees that it is.
    pub async fn insert_media(&self, drive: &Link, image: &str) -> Result<(), BmcError> {
        let resource = self.http.get(drive).await?;
        let now = media(&resource);
        if now.is_inserted && now.image.as_deref() == Some(image) {
            return Ok(());
        }
        if now.is_inserted {
            self.eject_media(drive).await?;
        }
        let mut wanted = Map::new();
        wanted.insert("Image".to_owned(), image.into());
        if has_action(resource.node(), "VirtualMedia.InsertMedia") || !resource.node().at("Actions").is_there() {
            let insert = action(&resource, "VirtualMedia.InsertMedia");
            let full = json!({ "Image": image, "Inserted": true, "WriteProtected": true });
            match self.http.post(&insert, Payload::Json(full)).await {
                // Some know no parameter but the image.
                Err(BmcError::Refused(_)) => drop(self.http.post(&insert, Payload::Json(Value::Object(wanted))).await?),
                answer => drop(answer?),
            }
        } else {
            wanted.insert("Inserted".to_owned(), true.into());
            self.http.patch(&resource, Value::Object(wanted)).await?;
        }
        self.settled(drive, |shown| shown.is_inserted && is_image(shown.image.as_deref(), image)).await
    }

    /// Has a drive emptied, and sees that it is.
    pub async fn eject_media(&self, drive: &Link) -> Result<(), BmcError> {
        let resource = self.http.get(drive).await?;
        let now = media(&resource);
        if !now.is_inserted && now.image.is_none() {
            return Ok(());
        }
        if has_action(resource.node(), "VirtualMedia.EjectMedia") || !resource.node().at("Actions").is_there() {
            let eject = action(&resource, "VirtualMedia.EjectMedia");
            self.http.post(&eject, Payload::Json(json!({}))).await?;
        } else {
            self.http.patch(&resource, json!({ "Image": null, "Inserted": false })).await?;
        }
        self.settled(drive, |shown| !shown.is_inserted).await
    }

    async fn settled(&self, drive: &Link, is_settled: impl Fn(&VirtualMedia) -> bool) -> Result<(), BmcError> {
        let mut shown = media(&self.http.get(drive).await?);
        for _ in 1..READS {
            if is_settled(&shown) {
                return Ok(());
            }
            tokio::time::sleep(self.http.bounds().settle).await;
            shown = media(&self.http.get(drive).await?);
        }
        if is_settled(&shown) {
            return Ok(());
        }
        let has = shown.image.filter(|_| shown.is_inserted).unwrap_or_else(|| "nothing".to_owned());
        Err(fault::refused(format!("{drive}: the change was taken and did nothing: it has {has} in it")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::resource::tests::{any_resource, resource},
        *,
    };

    #[test]
    fn a_drive_without_inserted_is_known_by_its_image() {
        let drive = |told| media(&resource("/redfish/v1/Managers/1/VirtualMedia/2", told));
        let full = drive(json!({"MediaTypes": ["CD", 3], "Image": "http://10.0.0.1/a.iso"}));
        assert!(full.is_inserted && full.is_cd());
        let empty = drive(json!({"Image": "", "Inserted": null, "MediaTypes": null}));
        assert!(!empty.is_inserted && !empty.is_cd() && empty.image.is_none());
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(resource in any_resource()) {
            media(&resource);
        }
    }
}
