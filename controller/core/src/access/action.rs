//! Actions, and the table of the roles that have them.

use std::{fmt, str::FromStr};

use super::Role;
use super::Role::{Admin, Billing, Collaborator, Operator, Owner, Technician, Viewer};

macro_rules! actions {
    ($($(#[doc = $doc:literal])* $variant:ident $name:literal [$($role:ident)*];)*) => {
        /// One kind of thing that one may do. Each is named after what it is done to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Action {
            /// All, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What one may do with it, in words.
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),*).trim_ascii(),)*
                }
            }

            /// The roles that have it.
            pub fn roles(self) -> &'static [Role] {
                match self {
                    $(Self::$variant => &[$($role),*],)*
                }
            }
        }
    };
}

// The table: what is done, and who may.
actions! {
    /// See organisations.
    OrganisationRead   "organisation.read"   [Owner Admin Operator            Collaborator Billing Viewer];
    /// Create, rename and remove organisations.
    OrganisationManage "organisation.manage" [Owner];
    /// See projects.
    ProjectRead        "project.read"        [Owner Admin Operator            Collaborator Billing Viewer];
    /// Create, rename and remove projects.
    ProjectManage      "project.manage"      [Owner Admin];
    /// Put machines and addresses into projects.
    ProjectUse         "project.use"         [Owner Admin Operator            Collaborator];
    /// See sites.
    SiteRead           "site.read"           [Owner Admin Operator Technician                      Viewer];
    /// Create, rename and remove sites.
    SiteManage         "site.manage"         [Owner Admin];
    /// See racks.
    RackRead           "rack.read"           [Owner Admin Operator Technician                      Viewer];
    /// Create racks and say in which site they stand.
    RackManage         "rack.manage"         [Owner Admin Operator];
    /// See agents.
    AgentRead          "agent.read"          [Owner Admin Operator Technician                      Viewer];
    /// Make enrolment codes for a rack's node.
    AgentEnrol         "agent.enrol"         [Owner Admin Operator Technician];
    /// Revoke and replace agents.
    AgentRevoke        "agent.revoke"        [Owner Admin Operator];
    /// See machines.
    MachineRead        "machine.read"        [Owner Admin Operator Technician Collaborator Billing Viewer];
    /// Adopt and rename machines, accept replaced parts.
    MachineAdopt       "machine.adopt"       [Owner Admin Operator Technician];
    /// Remove and merge machines.
    MachineForget      "machine.forget"      [Owner Admin Operator];
    /// Give machines to projects.
    MachineAssign      "machine.assign"      [Owner Admin Operator];
    /// Install systems on machines.
    MachineDeploy      "machine.deploy"      [Owner Admin Operator            Collaborator];
    /// Take machines back and erase them.
    MachineRelease     "machine.release"     [Owner Admin Operator            Collaborator];
    /// Switch machines on and off.
    MachinePower       "machine.power"       [Owner Admin Operator Technician Collaborator];
    /// Inspect machines, take them out of service and back.
    MachineMaintain    "machine.maintain"    [Owner Admin Operator Technician];
    /// See runs.
    RunRead            "run.read"            [Owner Admin Operator Technician Collaborator         Viewer];
    /// Cancel runs.
    RunCancel          "run.cancel"          [Owner Admin Operator            Collaborator];
    /// See images.
    ImageRead          "image.read"          [Owner Admin Operator Technician Collaborator         Viewer];
    /// Import and remove images.
    ImageManage        "image.manage"        [Owner Admin Operator];
    /// See pools, claims, and who had an address.
    AddressRead        "address.read"        [Owner Admin Operator Technician Collaborator Billing Viewer];
    /// Claim and release addresses.
    AddressClaim       "address.claim"       [Owner Admin Operator            Collaborator];
    /// Have machines announce addresses.
    AddressAnnounce    "address.announce"    [Owner Admin Operator            Collaborator];
    /// Say which names reverse DNS answers for addresses.
    AddressName        "address.name"        [Owner Admin Operator            Collaborator];
    /// Set up VRFs, aggregates and pools, reserve addresses.
    AddressSpace       "address.space"       [Owner Admin];
    /// See what happened.
    EventRead          "event.read"          [Owner Admin Operator Technician Collaborator         Viewer];
    /// See who changed what.
    AuditRead          "audit.read"          [Owner Admin];
    /// See people.
    PersonRead         "person.read"         [Owner Admin];
    /// Add, change and remove people.
    PersonManage       "person.manage"       [Owner Admin];
    /// See who has which role.
    RoleRead           "role.read"           [Owner Admin];
    /// Grant and take away roles.
    RoleGrant          "role.grant"          [Owner Admin];
    /// Make and revoke one's own tokens, password and second factor.
    TokenOwn           "token.own"           [Owner Admin Operator Technician Collaborator Billing Viewer];
    /// See all tokens.
    TokenRead          "token.read"          [Owner Admin];
    /// Make tokens for projects, revoke anybody's.
    TokenManage        "token.manage"        [Owner Admin];
}

impl Action {
    /// What one must be allowed to see to do this; `None` of what is of no one place.
    pub fn reads(self) -> Option<Self> {
        Some(match self {
            Self::OrganisationRead | Self::OrganisationManage => Self::OrganisationRead,
            Self::ProjectRead | Self::ProjectManage | Self::ProjectUse => Self::ProjectRead,
            Self::SiteRead | Self::SiteManage => Self::SiteRead,
            Self::RackRead | Self::RackManage => Self::RackRead,
            Self::AgentRead | Self::AgentEnrol | Self::AgentRevoke => Self::AgentRead,
            Self::MachineRead
            | Self::MachineAdopt
            | Self::MachineForget
            | Self::MachineAssign
            | Self::MachineDeploy
            | Self::MachineRelease
            | Self::MachinePower
            | Self::MachineMaintain => Self::MachineRead,
            Self::RunRead | Self::RunCancel => Self::RunRead,
            Self::ImageRead | Self::ImageManage => Self::ImageRead,
            Self::AddressRead | Self::AddressClaim | Self::AddressAnnounce | Self::AddressName | Self::AddressSpace => {
                Self::AddressRead
            }
            Self::EventRead => Self::EventRead,
            Self::AuditRead => Self::AuditRead,
            Self::PersonRead | Self::PersonManage => Self::PersonRead,
            Self::RoleRead | Self::RoleGrant => Self::RoleRead,
            Self::TokenRead | Self::TokenManage => Self::TokenRead,
            Self::TokenOwn => return None,
        })
    }
}

/// What is no action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no action; `rackhand role list` shows them")]
pub struct NoAction(pub String);

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Action {
    type Err = NoAction;

    fn from_str(text: &str) -> Result<Self, NoAction> {
        Self::ALL.iter().copied().find(|action| action.name() == text).ok_or_else(|| NoAction(text.into()))
    }
}
