//! Who may log in (DSP0268 AccountService, ManagerAccount).
//!
//! Invariant: after our own password was changed, the next login uses the new one.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    bmc::{BmcError, Credentials},
    told::{Account, Accounts, text},
};

use super::{
    Redfish, fault,
    http::Payload,
    link::Link,
    resource::{Node, Resource},
};

/// An account that has a name; `None` for an empty place.
pub fn account(node: Node<'_>) -> Option<Account> {
    let role = node.word("RoleId").map(str::to_owned);
    let role = role.or_else(|| node.at("Links").link("Role").map(|role| role.name().to_owned())).unwrap_or_default();
    let user = node.text("UserName")?;
    Some(Account {
        id: node.text("Id").unwrap_or_else(|| user.clone()),
        user,
        is_enabled: node.flag("Enabled").unwrap_or(true),
        is_administrator: ["administrator", "admin"].contains(&role.to_ascii_lowercase().as_str()),
        role: text(&role),
    })
}

impl Redfish {
    /// Every place for an account, also the empty ones, and their collection.
    async fn places(&self) -> Result<(Link, Vec<Resource>, Accounts), BmcError> {
        let service = self.service().await?;
        let mut walk = self.walk(&service);
        let link = service.root.node().link("AccountService");
        let link = link.ok_or_else(|| fault::unsupported("it has no accounts"))?;
        let accounts = self.http.get(&link).await?;
        let collection = accounts.node().link("Accounts").unwrap_or_else(|| link.below("Accounts"));
        let places = walk.members(&collection).await?;
        let accounts = places.iter().filter_map(|place| account(place.node())).collect();
        Ok((collection, places, Accounts { accounts, skipped: walk.skipped }))
    }

    pub(super) async fn read_accounts(&self) -> Result<Accounts, BmcError> {
        self.places().await.map(|(_, _, accounts)| accounts)
    }

    async fn account_of(&self, user: &str) -> Result<Resource, BmcError> {
        self.place_where(|place| place.word("UserName") == Some(user)).await
    }

    /// The account that was read so.
    async fn same_account(&self, known: &Account) -> Result<Resource, BmcError> {
        self.place_where(|place| {
            account(place).is_some_and(|now| (now.id, now.user) == (known.id.clone(), known.user.clone()))
        })
        .await
    }

    async fn place_where(&self, is_meant: impl Fn(Node<'_>) -> bool) -> Result<Resource, BmcError> {
        let (_, places, _) = self.places().await?;
        let place = places.into_iter().find(|place| is_meant(place.node()));
        let place = place.ok_or_else(|| fault::unsupported("it has no account of this name"))?;
        // What came with the collection has no tag of its own.
        self.http.get(&place.link).await
    }

    pub(super) async fn change_password(&self, user: &str, password: &str) -> Result<(), BmcError> {
        let account = self.account_of(user).await?;
        let is_ours = self.http.user().await == user;
        self.http.patch(&account, json!({ "Password": password })).await?;
        // At once: a call that is given up in between leaves a password that is denied.
        if is_ours {
            let password = Zeroizing::new(password.to_owned());
            self.http.log_in_as(Credentials { user: user.to_owned(), password }).await;
        }
        Ok(())
    }

    /// Lets the account of this name log in, or not.
    pub async fn enable_account(&self, user: &str, is_enabled: bool) -> Result<(), BmcError> {
        let account = self.account_of(user).await?;
        self.http.patch(&account, json!({ "Enabled": is_enabled })).await.map(drop)
    }

    pub(super) async fn write_account(&self, known: &Account, wanted: &Account) -> Result<(), BmcError> {
        let account = self.same_account(known).await?;
        let mut change = json!({ "Enabled": wanted.is_enabled });
        if let Some(role) = wanted.role.as_ref().filter(|role| Some(*role) != known.role.as_ref()) {
            change["RoleId"] = json!(role);
        }
        self.http.patch(&account, change).await.map(drop)
    }

    pub(super) async fn take_account(&self, known: &Account) -> Result<(), BmcError> {
        let account = self.same_account(known).await?;
        self.empty(&account).await
    }

    /// Makes an account, an administrator's when that is said. A BMC with a fixed number of
    /// places gets it into the first empty one.
    pub async fn create_account(&self, credentials: &Credentials, is_administrator: bool) -> Result<(), BmcError> {
        let (collection, places, _) = self.places().await?;
        let mut wanted = json!({
            "UserName": credentials.user,
            "Password": credentials.password.as_str(),
            "RoleId": if is_administrator { "Administrator" } else { "ReadOnly" },
            "Enabled": true,
        });
        match self.http.post(&collection, Payload::Json(wanted.clone())).await {
            Err(unsupported @ BmcError::Unsupported(_)) => {
                let place = empty_place(&places).ok_or(unsupported)?;
                let place = self.http.get(&place.link).await?;
                self.http.patch(&place, std::mem::take(&mut wanted)).await.map(drop)
            }
            answer => answer.map(drop),
        }
    }

    /// Removes the account of this name, or empties its place.
    pub async fn delete_account(&self, user: &str) -> Result<(), BmcError> {
        let account = self.account_of(user).await?;
        self.empty(&account).await
    }

    async fn empty(&self, account: &Resource) -> Result<(), BmcError> {
        match self.http.delete(&account.link).await {
            Err(BmcError::Unsupported(_)) => {
                let empty: Value = json!({ "UserName": "", "Enabled": false });
                self.http.patch(account, empty).await.map(drop)
            }
            answer => answer.map(drop),
        }
    }
}

/// The first place that has no name. The first of all is reserved, where places are numbered.
fn empty_place(places: &[Resource]) -> Option<&Resource> {
    places.iter().find(|place| place.node().word("UserName") == Some("") && place.node().word("Id") != Some("1"))
}

#[cfg(test)]
mod tests {
    use super::{super::resource::tests::resource, *};

    #[test]
    fn empty_places_are_no_accounts() {
        let place = |id: &str, told: Value| resource(&format!("/redfish/v1/AccountService/Accounts/{id}"), told);
        let places = [
            place("1", json!({"Id": "1", "UserName": "", "Enabled": false, "RoleId": "None"})),
            place("2", json!({"Id": "2", "UserName": "root", "Enabled": true, "RoleId": "Administrator"})),
            place(
                "3",
                json!({"Id": "3", "UserName": "guest", "Enabled": false, "Links": {"Role": {"@odata.id": "/redfish/v1/AccountService/Roles/ReadOnly"}}}),
            ),
            place("4", json!({"Id": "4", "UserName": ""})),
        ];
        let told: Vec<(String, bool, bool)> = places
            .iter()
            .filter_map(|place| account(place.node()))
            .map(|account| (account.user, account.is_enabled, account.is_administrator))
            .collect();
        assert_eq!(told, [("root".to_owned(), true, true), ("guest".to_owned(), false, false)]);
        assert_eq!(empty_place(&places).unwrap().link.name(), "4");
    }
}
