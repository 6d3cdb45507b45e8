package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	certBlock = "CERTIFICATE"
	csrBlock  = "CERTIFICATE REQUEST"
	keyBlock  = "PRIVATE KEY"

	// maxCerts bounds a PEM bundle: a chain or a trust bundle is never longer.
	maxCerts = 32
)

// EncodeCerts writes certificates as PEM, in order.
func EncodeCerts(certs ...*x509.Certificate) []byte {
	var buf bytes.Buffer
	for _, c := range certs {
		// Writing to a bytes.Buffer cannot fail.
		_ = pem.Encode(&buf, &pem.Block{Type: certBlock, Bytes: c.Raw})
	}
	return buf.Bytes()
}

// DecodeCerts reads one to 32 certificates from PEM; blocks of other kinds are an error.
func DecodeCerts(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			if len(bytes.TrimSpace(data)) > 0 {
				return nil, errors.New("not PEM")
			}
			break
		}
		if block.Type != certBlock {
			return nil, fmt.Errorf("a %q block where a certificate belongs", block.Type)
		}
		if len(certs) == maxCerts {
			return nil, fmt.Errorf("more than %d certificates", maxCerts)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
		data = rest
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	return certs, nil
}

// EncodeKey writes a private key as PEM (PKCS #8), unencrypted.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// DecodeKey reads an unencrypted private key from PEM: PKCS #8, or the older EC
// and RSA forms that external CAs are often given in. An encrypted key is ErrKeyLocked.
func DecodeKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no private key in PEM")
	}
	var key any
	var err error
	switch block.Type {
	case keyBlock:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case lockedKeyBlock:
		return nil, ErrKeyLocked
	default:
		return nil, fmt.Errorf("a %q block where a private key belongs", block.Type)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a private key of type %T cannot sign", key)
	}
	return signer, nil
}
