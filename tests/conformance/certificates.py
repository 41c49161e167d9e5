"""Certificates for tests, made by the openssl tool."""

import os
import subprocess

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

# Only `openssl ca` can make a certificate that has already expired.
CONFIG = """
[ca]
default_ca = default
[default]
database = index
rand_serial = yes
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
x509_extensions = leaf
unique_subject = no
[any]
commonName = supplied
[leaf]
basicConstraints = CA:FALSE
subjectAltName = IP:127.0.0.1, DNS:localhost
"""


class Authority:
    """A root certificate in a folder of its own, and the certificates that it signs."""

    def __init__(self, folder):
        self._folder = folder
        os.makedirs(folder)
        self._write("config", CONFIG)
        self._write("index", "")
        self._openssl("req", "-x509", *KEY, "-days", "2", "-subj", "/CN=root", "-keyout", "ca.key", "-out", "ca.pem")
        self.root = os.path.join(folder, "ca.pem")

    def issue(self, name, begin=None, end=None):
        """The paths of a new certificate for 127.0.0.1 and of its key."""
        self._openssl("req", "-new", *KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        dates = ["-startdate", begin, "-enddate", end] if end else ["-days", "2"]
        self._openssl("ca", "-batch", "-notext", "-config", "config", *dates, "-in", f"{name}.csr", "-out",
                      f"{name}.pem")
        return os.path.join(self._folder, f"{name}.pem"), os.path.join(self._folder, f"{name}.key")

    def issue_expired(self, name):
        return self.issue(name, "20200101000000Z", "20200102000000Z")

    def _write(self, name, text):
        with open(os.path.join(self._folder, name), "w", encoding="ascii") as file:
            file.write(text)

    def _openssl(self, *arguments):
        done = subprocess.run(["openssl", *arguments], cwd=self._folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def replace(path, source):
    """Replaces the file at `path` by the text of `source`, in one step."""
    with open(source, "rb") as file:
        text = file.read()
    with open(path + ".new", "wb") as file:
        file.write(text)
    os.rename(path + ".new", path)
