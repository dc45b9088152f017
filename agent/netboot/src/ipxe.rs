//! Renders iPXE scripts from the templates in `firmware-scripts/ipxe/`. A placeholder is
//! `@name@`.
//!
//! Invariant: nothing a machine sent, and no text for people, can end a line, start a
//! command or expand a setting. Values are addresses, numbers and hexadecimal by their types;
//! text is reduced to letters, digits and harmless punctuation.

use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;
use rackhand_common::{machine::Mac, pki::KeyPin};

/// A script to render.
#[derive(Clone, Debug)]
pub enum Script<'a> {
    /// Load our installer and tell it where to go.
    Installer(Installer),
    /// Start the system on the machine's own disk.
    Disk {
        /// The machine's name, for its screen.
        name: &'a str,
    },
    /// Show why, and ask again in a few seconds.
    Wait {
        /// Why, for people.
        reason: &'a str,
        /// Where to ask again.
        http: SocketAddrV4,
        /// Which card asks, when it said so in a form we understand.
        mac: Option<Mac>,
    },
    /// Show what went wrong, and ask again after a pause.
    Error {
        /// What, for people.
        reason: &'a str,
        /// Where to ask again.
        http: SocketAddrV4,
        /// Which card asks, when it said so in a form we understand.
        mac: Option<Mac>,
    },
}

/// What the installer is told on its kernel command line; see
/// [`channel`](rackhand_common::channel).
#[derive(Clone, Debug)]
pub struct Installer {
    /// Plain HTTP: kernel, initial RAM disk, chunks.
    pub http: SocketAddrV4,
    /// TLS: the installers' channel.
    pub boot: SocketAddrV4,
    /// Boot's public key there.
    pub pin: KeyPin,
    /// The ticket.
    pub ticket: [u8; 16],
    /// The card it boots from.
    pub mac: Mac,
    /// Its address, with the length of the subnet's prefix.
    pub address: Ipv4Net,
    /// Its default route, when there is one.
    pub gateway: Option<Ipv4Addr>,
}

/// The script as text.
pub fn render(script: &Script<'_>) -> String {
    match script {
        Script::Installer(installer) => fill(
            INSTALLER,
            &[
                ("http", &installer.http.to_string()),
                ("boot", &installer.boot.to_string()),
                ("pin", &installer.pin.to_string()),
                ("ticket", &hexadecimal(&installer.ticket)),
                ("mac", &installer.mac.to_string()),
                ("url", &script_url(installer.http, Some(installer.mac))),
                ("address", &installer.address.to_string()),
                ("gateway", &installer.gateway.map(|a| format!(" rackhand.gateway={a}")).unwrap_or_default()),
            ],
        ),
        Script::Disk { name } => fill(DISK, &[("name", &harmless(name))]),
        Script::Wait { reason, http, mac } => {
            fill(WAIT, &[("reason", &harmless(reason)), ("url", &script_url(*http, *mac))])
        }
        Script::Error { reason, http, mac } => {
            fill(ERROR, &[("reason", &harmless(reason)), ("url", &script_url(*http, *mac))])
        }
    }
}

/// Where the card `mac` fetches its script; without one, whichever card iPXE uses. With
/// hyphens, because iPXE sends colons in a query percent-encoded.
pub fn script_url(http: SocketAddrV4, mac: Option<Mac>) -> String {
    match mac {
        Some(mac) => format!("http://{http}/boot.ipxe?mac={}", mac.to_string().replace(':', "-")),
        None => format!("http://{http}/boot.ipxe?mac=${{netX/mac:hexhyp}}"),
    }
}

/// Puts values into a template in one pass, so that a value is never searched for placeholders.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len() + 256);
    let mut parts = template.split('@');
    text.push_str(parts.next().unwrap_or_default());
    while let Some(name) = parts.next() {
        let value = values.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        text.push_str(value.expect("templates name only values that are given; a test renders each"));
        text.push_str(parts.next().unwrap_or_default());
    }
    text
}

/// `text` without anything that means something to iPXE (`${…}`, `&&`, `||`, `;`, `#`, quotes)
/// or to a terminal, and at most as long as a screen is wide.
fn harmless(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " .,:-_/()".contains(c);
    text.chars().map(|c| if allowed(c) { c } else { '?' }).take(100).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const INSTALLER: &str = include_str!("../../../firmware-scripts/ipxe/installer.ipxe");
const DISK: &str = include_str!("../../../firmware-scripts/ipxe/disk.ipxe");
const WAIT: &str = include_str!("../../../firmware-scripts/ipxe/wait.ipxe");
const ERROR: &str = include_str!("../../../firmware-scripts/ipxe/error.ipxe");

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    const HTTP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 8080);

    fn check(script: &Script<'_>, expect: Expect) {
        expect.assert_eq(&render(script));
    }

    #[test]
    fn the_installer_is_told_where_to_go() {
        check(
            &Script::Installer(Installer {
                http: HTTP,
                boot: "10.0.0.1:8444".parse().unwrap(),
                pin: KeyPin([0xab; 32]),
                ticket: [0x01; 16],
                mac: "52:54:00:12:34:56".parse().unwrap(),
                address: "10.0.0.9/24".parse().unwrap(),
                gateway: Some("10.0.0.1".parse().unwrap()),
            }),
            expect![[r#"
                #!ipxe
                # Loads the installer into RAM. A failed fetch is tried again from the start, with a fresh script.
                echo Rackhand: loading the installer
                kernel http://10.0.0.1:8080/kernel initrd=initramfs console=tty0 console=ttyS0,115200 panic=10 quiet rackhand.boot=10.0.0.1:8444 rackhand.http=10.0.0.1:8080 rackhand.pin=abababababababababababababababababababababababababababababababab rackhand.ticket=01010101010101010101010101010101 rackhand.mac=52:54:00:12:34:56 rackhand.address=10.0.0.9/24 rackhand.gateway=10.0.0.1 || goto again
                initrd --name initramfs http://10.0.0.1:8080/initramfs || goto again
                boot || goto again

                :again
                echo Rackhand: the installer could not be loaded; trying again
                imgfree
                sleep 3
                chain --replace --autofree http://10.0.0.1:8080/boot.ipxe?mac=52-54-00-12-34-56 || goto again
            "#]],
        );
    }

    #[test]
    fn the_disk_is_left_to_the_firmware_on_uefi_and_started_on_bios() {
        check(
            &Script::Disk { name: "web-1" },
            expect![[r#"
            #!ipxe
            # Starts the system on the machine's own disk. UEFI firmware walks on to the next boot entry
            # only when iPXE leaves with an error; a BIOS would come back here, so its disk is started.
            echo Rackhand: web-1 starts from its own disk
            iseq ${platform} efi && exit 1 ||
            sanboot --no-describe --drive 0x80 || exit 1
        "#]],
        );
    }

    #[test]
    fn a_waiting_machine_asks_again_by_itself() {
        check(
            &Script::Wait { reason: "not told yet", http: HTTP, mac: None },
            expect![[r#"
                #!ipxe
                echo Rackhand: waiting: not told yet
                :again
                sleep 5
                chain --replace --autofree http://10.0.0.1:8080/boot.ipxe?mac=${netX/mac:hexhyp} || goto again
            "#]],
        );
    }

    #[test]
    fn an_error_is_shown_before_the_machine_asks_again() {
        check(
            &Script::Error { reason: "no kernel; ask\nreboot ${x}", http: HTTP, mac: None },
            expect![[r#"
                #!ipxe
                echo
                echo Rackhand cannot boot this machine: no kernel? ask?reboot ??x?
                echo It will ask again in 15 seconds.
                :again
                sleep 15
                chain --replace --autofree http://10.0.0.1:8080/boot.ipxe?mac=${netX/mac:hexhyp} || goto again
            "#]],
        );
    }

    proptest! {
        #[test]
        fn no_text_adds_a_line_or_a_command(text in any::<String>()) {
            let plain = render(&Script::Error { reason: "x", http: HTTP, mac: None });
            let hostile = render(&Script::Error { reason: &text, http: HTTP, mac: None });
            prop_assert_eq!(plain.lines().count(), hostile.lines().count());
            let marks = |s: &str| s.matches(['$', '|', '&', ';', '`', '\r']).count();
            prop_assert_eq!(marks(&plain), marks(&hostile));
        }
    }
}
