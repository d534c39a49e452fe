# Targets install and uninstall, included by the Makefile. Both take
#
#   DESTDIR   a root to install below, for packagers; no service is told then
#   PREFIX    /usr/local by default; packages set /usr
#   BIN       the folder of the built binaries
#
# Units lie below PREFIX, so that /etc/systemd is left to the administrator:
# `systemctl edit --full` writes there, and a second install must not undo it.
# systemd searches /usr and /usr/local; for any other PREFIX they go to /etc.

DESTDIR    ?=
PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
BIN        ?= bin
BINDIR     ?= $(PREFIX)/bin
LIBDIR     ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,$(SYSCONFDIR))
EXAMPLEDIR ?= $(PREFIX)/share/doc/flanneld-go/systemd
# NetworkManager does not search /usr/local.
NMDIR      ?= $(if $(filter /usr,$(PREFIX)),$(PREFIX)/lib,$(SYSCONFDIR))/NetworkManager/conf.d
CONFFILE   ?= $(SYSCONFDIR)/default/flanneld-go

SYSTEMCTL  ?= systemctl
UDEVADM    ?= udevadm
TMPFILES   ?= systemd-tmpfiles

# Where this file stands, so that make may run from anywhere.
SYSTEMD_DIR := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))

INSTALL_BINARIES := $(BIN)/flanneld-go $(BIN)/flannelctl

# source:destination of every file that is installed as it is.
INSTALL_DATA := \
	docker.service.d/flanneld-go.conf:$(LIBDIR)/systemd/system/docker.service.d/flanneld-go.conf \
	network/10-flannel.link:$(LIBDIR)/systemd/network/10-flannel.link \
	network/10-flannel.network:$(LIBDIR)/systemd/network/10-flannel.network \
	networkd.conf.d/10-flannel.conf:$(LIBDIR)/systemd/networkd.conf.d/10-flannel.conf \
	tmpfiles.d/flanneld-go.conf:$(LIBDIR)/tmpfiles.d/flanneld-go.conf \
	NetworkManager/10-flannel.conf:$(NMDIR)/10-flannel.conf \
	examples/docker-options.conf:$(EXAMPLEDIR)/docker-options.conf \
	examples/docker-options-ce.conf:$(EXAMPLEDIR)/docker-options-ce.conf
# One file becomes two units: that of the first instance, and a template for others,
# whose names have the number, %i, behind them.
INSTALL_UNIT := $(LIBDIR)/systemd/system/flanneld-go.service
INSTALL_TEMPLATE := $(LIBDIR)/systemd/system/flanneld-go@.service

# All that uninstall removes, the settings aside.
INSTALLED := $(INSTALL_BINARIES:$(BIN)/%=$(BINDIR)/%) $(INSTALL_UNIT) $(INSTALL_TEMPLATE) \
	$(foreach pair,$(INSTALL_DATA),$(lastword $(subst :, ,$(pair))))
# Folders that are only there because of us, if they are empty then.
INSTALLED_DIRS := $(LIBDIR)/systemd/system/docker.service.d $(LIBDIR)/systemd/networkd.conf.d \
	$(EXAMPLEDIR) $(PREFIX)/share/doc/flanneld-go

# A running systemd (sd_booted(3)) is told of a change, unless the files are for
# another root.
SYSTEMD_BOOTED ?= /run/systemd/system
LIVE = test -z '$(DESTDIR)' && test -d '$(SYSTEMD_BOOTED)'

# Binaries are built by `make build` as you, and installed by root, who may not
# even find go.
$(INSTALL_BINARIES):
	$(MAKE) build

.PHONY: install
install: $(INSTALL_BINARIES) ## install binaries, units and settings (DESTDIR, PREFIX)
	@set -e; umask 022; \
	put() { echo "install $(DESTDIR)$$3"; install -D -m "$$1" "$$2" "$(DESTDIR)$$3"; }; \
	for binary in $(INSTALL_BINARIES); do put 0755 "$$binary" "$(BINDIR)/$${binary##*/}"; done; \
	for pair in $(INSTALL_DATA); do put 0644 "$(SYSTEMD_DIR)/$${pair%%:*}" "$${pair#*:}"; done; \
	put 0644 '$(SYSTEMD_DIR)/flanneld-go.service.in' '$(INSTALL_UNIT)'; \
	sed -i 's|@BINDIR@|$(BINDIR)|g; s|@[IN]@||g; s|@FLAG@||g' '$(DESTDIR)$(INSTALL_UNIT)'; \
	put 0644 '$(SYSTEMD_DIR)/flanneld-go.service.in' '$(INSTALL_TEMPLATE)'; \
	sed -i 's|@BINDIR@|$(BINDIR)|g; s|@I@|@%i|g; s|@N@|%i|g; s|@FLAG@| --instance=%i|g' '$(DESTDIR)$(INSTALL_TEMPLATE)'; \
	if test -e '$(DESTDIR)$(CONFFILE)'; then \
		echo 'keep $(DESTDIR)$(CONFFILE)'; \
	else \
		put 0644 '$(SYSTEMD_DIR)/flanneld-go.default' '$(CONFFILE)'; \
	fi
	@if $(LIVE); then \
		set -ex; \
		$(TMPFILES) --create '$(LIBDIR)/tmpfiles.d/flanneld-go.conf'; \
		$(SYSTEMCTL) daemon-reload; \
		$(UDEVADM) control --reload || true; \
		{ set +x; } 2>/dev/null; \
		echo 'installed; next: systemctl enable --now flanneld-go (restart, if it runs)'; \
	fi

.PHONY: uninstall
uninstall: ## remove what install put; changed settings and the kernel's state stay
	@if $(LIVE) && test -e '$(INSTALL_UNIT)'; then \
		set -x; $(SYSTEMCTL) disable --now flanneld-go.service; \
		$(SYSTEMCTL) stop 'flanneld-go@*.service'; $(SYSTEMCTL) disable flanneld-go@.service; \
	fi
	rm -f $(patsubst %,'$(DESTDIR)%',$(INSTALLED))
	@if cmp -s '$(SYSTEMD_DIR)/flanneld-go.default' '$(DESTDIR)$(CONFFILE)'; then \
		echo 'rm $(DESTDIR)$(CONFFILE)'; rm -f '$(DESTDIR)$(CONFFILE)'; \
	elif test -e '$(DESTDIR)$(CONFFILE)'; then \
		echo 'keep $(DESTDIR)$(CONFFILE): it was changed'; \
	fi
	@for dir in $(INSTALLED_DIRS); do \
		if test -d "$(DESTDIR)$$dir"; then rmdir --ignore-fail-on-non-empty "$(DESTDIR)$$dir"; fi; \
	done
	@if $(LIVE); then \
		set -ex; $(SYSTEMCTL) daemon-reload; $(UDEVADM) control --reload || true; \
	fi
