#!/bin/sh
# What udhcpc learned, put to use in the guest: address, route, resolver, MTU.
case $1 in
deconfig)
	ip link set $interface up
	;;
bound | renew)
	ip addr flush dev $interface scope global
	ip addr add $ip/$mask dev $interface
	[ -n "$mtu" ] && ip link set $interface mtu $mtu
	for gateway in $router; do
		ip route replace default via $gateway dev $interface
	done
	for server in $dns; do
		echo "nameserver $server"
	done >/etc/resolv.conf
	;;
esac
