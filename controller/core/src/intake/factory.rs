//! What BMCs are logged in to with as they come from the factory: data, in `firmware-scripts/bmc`.
//!
//! A BMC of a vendor that is not among them is not tried: a wrong password counts towards locking
//! its account.

use rackhand_common::bmc::vendor::{Factory, vendors};

/// What a BMC of this vendor and model comes with from the factory.
pub fn factory(vendor: Option<&str>, model: Option<&str>) -> Option<&'static Factory> {
    vendors().iter().find(|rule| rule.fits(vendor, model))?.factory.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vendor_is_known_by_any_of_its_names_and_nobody_else_is_tried() {
        let user = |vendor| factory(Some(vendor), None).map(|factory| factory.user.as_str());
        assert_eq!(user("Dell Inc."), Some("root"));
        assert_eq!(user("SUPERMICRO"), Some("ADMIN"));
        assert_eq!(user("Super Micro Computer, Inc."), Some("ADMIN"));
        assert_eq!(user("Lenovo"), Some("USERID"));
        assert_eq!(user("AMI"), Some("admin"));
        assert_eq!(user("AMIcable Servers"), None);
        assert_eq!((user("HPE"), user(""), factory(None, None)), (None, None, None));
    }
}
