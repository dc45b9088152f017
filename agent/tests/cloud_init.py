"""What cloud-init itself makes of config drives: python3 cloud_init.py SOURCE DIRECTORY MAC...

SOURCE is `nocloud` or `config_drive`; below DIRECTORY, `seed/SOURCE` has the drive's files. Prints
for each such triple one line of JSON. Ends with an error when a source does not take its drive,
or a cloud-config does not fit cloud-init's schema.
"""

import json
import sys

from cloudinit import helpers, safeyaml
from cloudinit.config import schema
from cloudinit.net import network_state, networkd
from cloudinit.sources import DataSourceConfigDrive, DataSourceNoCloud


def cloud_config(text):
    text = text.decode() if isinstance(text, bytes) else text
    if not text.startswith("#cloud-config\n"):
        return text
    config = safeyaml.load(text)
    schema.validate_cloudconfig_schema(config, schema=schema.get_schema(), strict=True)
    return config


def read(name, directory, mac):
    source = {
        "nocloud": DataSourceNoCloud.DataSourceNoCloud,
        "config_drive": DataSourceConfigDrive.DataSourceConfigDrive,
    }[name]({}, None, helpers.Paths({"cloud_dir": directory, "run_dir": directory}))
    # The card that the machine booted from, instead of those in here.
    source.known_macs = {mac: "eno1"}
    if not source._get_data():
        raise SystemExit(f"{name} does not take {directory}")
    network = network_state.parse_net_config_data(source.network_config)
    return {
        "instance": source.get_instance_id(),
        "name": source.metadata["local-hostname"],
        "keys": source.get_public_ssh_keys(),
        "vendor": cloud_config(source.get_vendordata_raw()),
        "user": cloud_config(source.get_userdata_raw()),
        "network": list(networkd.Renderer({})._render_content(network).values()),
    }


arguments = sys.argv[1:]
for triple in zip(arguments[::3], arguments[1::3], arguments[2::3]):
    print(json.dumps(read(*triple), sort_keys=True))
