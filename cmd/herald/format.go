package main

import (
	"encoding/hex"
	"strconv"
	"strings"
)

// format writes m as mosquitto_sub's -F asks.
func format(f string, m message) []byte {
	var b []byte
	for i := 0; i < len(f); i++ {
		if i+1 == len(f) || f[i] != '%' && f[i] != '\\' {
			b = append(b, f[i])
			continue
		}
		i++
		if f[i-1] == '\\' {
			b = append(b, escape(f[i])...)
		} else {
			b = append(b, field(f[i], m)...)
		}
	}
	return b
}

func escape(c byte) string {
	switch c {
	case 'n':
		return "\n"
	case 't':
		return "\t"
	case 'r':
		return "\r"
	case '0':
		return "\x00"
	case '\\':
		return "\\"
	}
	return "\\" + string(c)
}

func field(c byte, m message) string {
	flag := func(b bool) string {
		if b {
			return "1"
		}
		return "0"
	}
	switch c {
	case 't':
		return m.topic
	case 'p':
		return string(m.payload)
	case 'x':
		return hex.EncodeToString(m.payload)
	case 'X':
		return strings.ToUpper(hex.EncodeToString(m.payload))
	case 'l':
		return strconv.Itoa(len(m.payload))
	case 'q':
		return strconv.Itoa(int(m.qos))
	case 'r':
		return flag(m.retain)
	case 'd':
		return flag(m.dup)
	case 'm':
		return strconv.Itoa(int(m.packetID))
	case 'C':
		return m.props.contentType
	case 'R':
		return m.props.responseTopic
	case 'D':
		return string(m.props.correlation)
	case 'E':
		if m.props.messageExpiry != nil {
			return strconv.FormatUint(uint64(*m.props.messageExpiry), 10)
		}
		return ""
	case 'P':
		var parts []string
		for _, u := range m.props.user {
			parts = append(parts, u.Key+":"+u.Value)
		}
		return strings.Join(parts, " ")
	case '%':
		return "%"
	}
	return "%" + string(c)
}
