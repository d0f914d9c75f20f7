// Replaces KEDA's readers of clouds' secrets, whose libraries would take most of the build.
package resolver

import "errors"

var errWithoutClouds = errors.New("this KEDA is built without clouds")

type cloudSecrets struct{}

func NewAwsSecretManagerHandler(any) cloudSecrets { return cloudSecrets{} }
func NewAzureKeyVaultHandler(any) cloudSecrets    { return cloudSecrets{} }
func NewGCPSecretManagerHandler(any) cloudSecrets { return cloudSecrets{} }

func (cloudSecrets) Initialize(...any) error     { return errWithoutClouds }
func (cloudSecrets) Read(...any) (string, error) { return "", errWithoutClouds }
func (cloudSecrets) Stop()                       {}
