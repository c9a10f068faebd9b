#!/bin/sh
# A certificate authority for the peers, and a leaf with a SPIFFE ID for either end; into the current folder.
set -eu
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -days 2 -subj "/CN=mesh-ca" -out ca.pem -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
for n in a b; do
openssl ecparam -name prime256v1 -genkey -noout -out $n.key0
openssl pkcs8 -topk8 -nocrypt -in $n.key0 -out $n.key
openssl req -new -key $n.key -subj "/CN=$n" -out $n.csr
printf "subjectAltName=URI:spiffe://mesh.test/agent/$n,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\nbasicConstraints=CA:FALSE" > $n.ext
openssl x509 -req -in $n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $n.ext -out $n.pem
done
